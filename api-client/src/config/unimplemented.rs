//! Fields and options that Cloud Hypervisor has or had and that no type here
//! has. A client that sends one of them at its default asks for nothing;
//! clients that are made from its description send them all. Anything else is
//! refused by name.

use serde_json::Value;

use AtDefault::{Absent, False, Number, True};

/// What a field says when it asks for nothing; so does `null`.
#[derive(Clone, Copy, Debug)]
enum AtDefault {
    /// Nothing at all, or an empty list or text.
    Absent,
    False,
    True,
    Number(u64),
}

/// By type: the fields, each with its default.
#[rustfmt::skip]
const UNIMPLEMENTED: &[(&str, &[(&str, AtDefault)])] = &[
    ("DiskConfig", &[
        ("disable_aio", False),
        ("disable_io_uring", False),
        ("poll_queue", True),
        ("wce", True),
    ]),
    ("FsConfig", &[
        ("cache_size", Number(8 << 30)),
        ("dax", True),
    ]),
    ("MemoryConfig", &[
        ("balloon", False),
        ("balloon_size", Number(0)),
        ("file", Absent),
    ]),
    ("NumaConfig", &[
        ("sgx_epc_sections", Absent),
    ]),
    ("PayloadConfig", &[
        ("fw_cfg_config", Absent),
        ("host_data", Absent),
        ("igvm", Absent),
    ]),
    ("PlatformConfig", &[
        // The description's name of `iommu_address_width_bits`.
        ("iommu_address_width", Number(64)),
    ]),
    ("PmemConfig", &[
        ("mergeable", False),
    ]),
    ("SerialConfig", &[
        ("iommu", False),
    ]),
    ("VmConfig", &[
        ("gdb", False),
        ("ivshmem", Absent),
        ("pvmemcontrol", Absent),
        ("sgx_epc", Absent),
        ("tdx", Absent),
    ]),
    ("VmResize", &[
        ("desired_ram_w_balloon", Absent),
    ]),
];

/// Options of the command line whose names are not those of the fields.
const OPTIONS: &[(&str, &str, &str)] = &[
    ("DiskConfig", "_disable_aio", "disable_aio"),
    ("DiskConfig", "_disable_io_uring", "disable_io_uring"),
];

/// Earlier names of fields: type, earlier name, name.
const RENAMED: &[(&str, &str, &str)] = &[
    ("PlatformConfig", "serial_number", "system_serial_number"),
    ("PlatformConfig", "uuid", "system_uuid"),
];

/// What Cloud Hypervisor calls a field of this type now, if `name` is its
/// earlier name.
pub(crate) fn renamed(of: &str, name: &str) -> Option<&'static str> {
    RENAMED
        .iter()
        .find(|(known, old, _)| *known == of && *old == name)
        .map(|(_, _, new)| *new)
}

fn default(of: &str, name: &str) -> Option<AtDefault> {
    let (_, fields) = UNIMPLEMENTED.iter().find(|(known, _)| *known == of)?;
    let (_, default) = fields.iter().find(|(field, _)| *field == name)?;
    Some(*default)
}

/// Judges a field that this type does not have and that is not null: `None` if Cloud Hypervisor
/// never had it, else whether the value asks for nothing, or what would.
pub(crate) fn field(of: &str, name: &str, value: &Value) -> Option<Result<(), String>> {
    let default = default(of, name)?;
    let asks_for_nothing = match (default, value) {
        (Absent, Value::Array(list)) => list.is_empty(),
        (Absent, Value::String(text)) => text.is_empty(),
        (Absent, Value::Bool(set)) => !set,
        (False, Value::Bool(set)) => !set,
        (True, Value::Bool(set)) => *set,
        (Number(default), Value::Number(number)) => number.as_u64() == Some(default),
        _ => false,
    };
    Some(if asks_for_nothing {
        Ok(())
    } else {
        Err(default.accepted())
    })
}

/// Judges an option of the command line like a [`field`].
pub(crate) fn option(of: &str, name: &str, value: &str) -> Option<Result<(), String>> {
    let listed = OPTIONS
        .iter()
        .find(|(known, option, _)| *known == of && *option == name);
    let name = listed.map_or(name, |(_, _, field)| field);
    let default = default(of, name)?;
    let asks_for_nothing = match (default, value.to_ascii_lowercase().as_str()) {
        (_, "") | (False, "off" | "false") | (True, "on" | "true") => true,
        (Number(default), value) => crate::options::parse_size(value) == Some(default),
        _ => false,
    };
    Some(if asks_for_nothing {
        Ok(())
    } else {
        Err(default.accepted())
    })
}

impl AtDefault {
    /// What of it is valid.
    fn accepted(self) -> String {
        match self {
            Absent => "leave it out".into(),
            False => "the only valid value is false".into(),
            True => "the only valid value is true".into(),
            Number(number) => format!("the only valid value is {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fields::FIELDS;
    use super::*;

    #[test]
    fn no_listed_field_has_come_to_a_type() {
        let listed = UNIMPLEMENTED
            .iter()
            .flat_map(|(of, fields)| fields.iter().map(move |(name, _)| (*of, *name)))
            .chain(RENAMED.iter().map(|(of, old, _)| (*of, *old)));
        for (of, name) in listed {
            let (_, fields) = FIELDS.iter().find(|(known, _)| *known == of).unwrap();
            assert!(
                !fields.iter().any(|(field, _)| *field == name),
                "{of}.{name}"
            );
        }
        for (of, _, new) in RENAMED {
            let (_, fields) = FIELDS.iter().find(|(known, _)| known == of).unwrap();
            assert!(fields.iter().any(|(field, _)| field == new), "{of}.{new}");
        }
    }
}
