//! Which fields a body may have. The types ignore what they do not know, as a
//! client that reads a newer server must; a server that did so would silently
//! build another machine than the one asked for.

use serde_json::Value;

#[path = "fields.rs"]
mod fields;

/// What is wrong with the form of a body that its type would not mind: a field
/// that the type does not have, or a list for an object, whose fields it would
/// take in order. An unknown field that is null asks for nothing.
#[must_use]
pub fn misfit(of: &str, body: &Value) -> Option<String> {
    find(of, body, "")
}

fn find(of: &str, body: &Value, at: &str) -> Option<String> {
    if let Some(of) = of.strip_prefix('[') {
        let of = of.trim_end_matches(']');
        return body.as_array()?.iter().find_map(|body| find(of, body, at));
    }
    let (_, fields) = fields::FIELDS.iter().find(|(name, _)| *name == of)?;
    match body {
        Value::Array(_) if at.is_empty() => Some("A list is given for an object".into()),
        Value::Array(_) => Some(format!("The field {at} is an object, not a list")),
        Value::Object(map) => map.iter().find_map(|(name, value)| {
            let at = match at {
                "" => name.clone(),
                at => format!("{at}.{name}"),
            };
            match fields.iter().find(|(known, _)| known == name) {
                Some((_, inner)) => find(inner, value, &at),
                None if value.is_null() => None,
                None => Some(format!("There is no field {at}")),
            }
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::VmConfig;

    #[test]
    fn a_field_that_does_not_exist_is_named_with_the_way_to_it() {
        for (body, unknown) in [
            (json!({"cpus": {"boot_vcpus": 2}}), None),
            (json!({"unheard_of": 1}), Some("unheard_of")),
            (json!({"gdb": null}), None),
            (json!({"cpus": {"x": []}}), Some("cpus.x")),
            (
                json!({"disks": [{"path": "/a"}, {"y": 1}]}),
                Some("disks.y"),
            ),
            (
                json!({"disks": [{"rate_limiter_config": {"ops": {"z": 1}}}]}),
                Some("disks.rate_limiter_config.ops.z"),
            ),
            (json!({"disks": [{"id": "a", "pci_segment": 0}]}), None),
        ] {
            let message = unknown.map(|field| format!("There is no field {field}"));
            assert_eq!(misfit("VmConfig", &body), message);
        }
    }

    #[test]
    fn a_list_is_no_object() {
        assert_eq!(
            misfit("VmConfig", &json!({"rng": ["/dev/urandom"]})).as_deref(),
            Some("The field rng is an object, not a list")
        );
        assert!(misfit("VmConfig", &json!([])).is_some());
        assert_eq!(misfit("VmConfig", &json!({"disks": []})), None);
    }

    #[test]
    fn whatever_is_written_fits() {
        let config = serde_json::to_value(VmConfig::default()).unwrap();
        assert_eq!(misfit("VmConfig", &config), None);
    }
}
