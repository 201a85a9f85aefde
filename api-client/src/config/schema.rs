//! Which fields a body may have. The types ignore what they do not know, as a
//! client that reads a newer server must; a server that did so would silently
//! build another machine than the one asked for.

use serde_json::Value;

use super::fields::FIELDS;
use super::unimplemented;

/// What is wrong with the fields of a body that its type would not mind: a
/// field that the type does not have, or a list in place of an object, whose
/// elements it would take as fields in order. A field that is null, and one
/// that Cloud Hypervisor has and that is at its default, ask for nothing.
///
/// Earlier names of fields are accepted with a warning in the log.
#[must_use]
pub fn unknown_field(of: &str, body: &Value) -> Option<String> {
    find(of, body, "")
}

fn find(of: &str, body: &Value, at: &str) -> Option<String> {
    if let Some(of) = of.strip_prefix('[') {
        let of = of.trim_end_matches(']');
        return body.as_array()?.iter().find_map(|body| find(of, body, at));
    }
    let (_, fields) = FIELDS.iter().find(|(name, _)| *name == of)?;
    match body {
        Value::Array(_) if at.is_empty() => Some("The body must be an object, not a list".into()),
        Value::Array(_) => Some(format!("The field {at} must be an object, not a list")),
        Value::Object(map) => map.iter().find_map(|(name, value)| {
            let at = match at {
                "" => name.clone(),
                at => format!("{at}.{name}"),
            };
            if let Some((_, inner)) = fields.iter().find(|(known, _)| known == name) {
                return find(inner, value, &at);
            }
            if value.is_null() {
                return None;
            }
            if let Some(new) = unimplemented::renamed(of, name) {
                log::warn!("the field {at:?} is called {new} now");
                return None;
            }
            match unimplemented::field(of, name, value) {
                Some(Ok(())) => None,
                Some(Err(valid)) => Some(format!("The field {at} is not supported: {valid}")),
                None => Some(format!("Unknown field {at}")),
            }
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{PlatformConfig, VmConfig};

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
            let message = unknown.map(|field| format!("Unknown field {field}"));
            assert_eq!(unknown_field("VmConfig", &body), message);
        }
    }

    #[test]
    fn a_list_is_no_object() {
        assert_eq!(
            unknown_field("VmConfig", &json!({"rng": ["/dev/urandom"]})).as_deref(),
            Some("The field rng must be an object, not a list")
        );
        assert!(unknown_field("VmConfig", &json!([])).is_some());
        assert_eq!(unknown_field("VmConfig", &json!({"disks": []})), None);
    }

    #[test]
    fn whatever_is_written_fits() {
        let config = serde_json::to_value(VmConfig::default()).unwrap();
        assert_eq!(unknown_field("VmConfig", &config), None);
    }

    #[test]
    fn what_cloud_hypervisor_has_at_its_default_asks_for_nothing() {
        for body in [
            json!({"serial": {"mode": "Null", "iommu": false}, "gdb": false}),
            json!({"disks": [{"path": "/d", "disable_io_uring": false, "disable_aio": false}]}),
            json!({"memory": {"size": 1 << 30, "hotplug_size": 0, "hotplug_method": "Acpi"}}),
            json!({"platform": {"iommu_address_width": 64}, "sgx_epc": [], "tdx": null}),
            json!({"payload": {"kernel": "/k", "igvm": null, "host_data": ""}}),
        ] {
            assert_eq!(unknown_field("VmConfig", &body), None, "{body}");
        }
        for (body, refusal) in [
            (
                json!({"serial": {"mode": "Null", "iommu": true}}),
                "The field serial.iommu is not supported: the only valid value is false",
            ),
            (
                json!({"disks": [{"disable_aio": true}]}),
                "The field disks.disable_aio is not supported: the only valid value is false",
            ),
            (
                json!({"platform": {"iommu_address_width": 48}}),
                "The field platform.iommu_address_width is not supported: the only valid value is 64",
            ),
            (
                json!({"payload": {"igvm": "/i"}}),
                "The field payload.igvm is not supported: leave it out",
            ),
            // Of another type.
            (
                json!({"memory": {"gdb": false}}),
                "Unknown field memory.gdb",
            ),
        ] {
            assert_eq!(unknown_field("VmConfig", &body).as_deref(), Some(refusal));
        }
    }

    #[test]
    fn an_earlier_name_is_the_same_field() {
        let body = json!({"serial_number": "1", "uuid": "2"});
        assert_eq!(unknown_field("PlatformConfig", &body), None);
        let platform: PlatformConfig = serde_json::from_value(body).unwrap();
        assert_eq!(platform.system_serial_number.as_deref(), Some("1"));
        assert_eq!(platform.system_uuid.as_deref(), Some("2"));
        let both = json!({"uuid": "1", "system_uuid": "2"});
        assert!(serde_json::from_value::<PlatformConfig>(both).is_err());
    }
}
