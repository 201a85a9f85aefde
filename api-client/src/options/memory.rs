//! `--memory` and `--memory-zone`

use std::str::FromStr;

use super::{OptionError, Options, required};
use crate::config::{HotplugMethod, MemoryConfig, MemoryZoneConfig};

const MEMORY_KEYS: [&str; 11] = [
    "size",
    "mergeable",
    "shared",
    "hugepages",
    "hugepage_size",
    "hotplug_method",
    "hotplug_size",
    "hotplugged_size",
    "prefault",
    "reserve",
    "thp",
];

impl FromStr for MemoryConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse_for("MemoryConfig", text, &MEMORY_KEYS, &[])?;
        let default = MemoryConfig::default();
        Ok(MemoryConfig {
            size: options.size("size")?.unwrap_or(default.size),
            mergeable: options.toggle("mergeable")?.unwrap_or(default.mergeable),
            hotplug_method: options
                .choice(
                    "hotplug_method",
                    &[
                        ("acpi", HotplugMethod::Acpi),
                        ("virtio-mem", HotplugMethod::VirtioMem),
                    ],
                )?
                .unwrap_or_default(),
            hotplug_size: options.size("hotplug_size")?,
            hotplugged_size: options.size("hotplugged_size")?,
            shared: options.toggle("shared")?.unwrap_or(default.shared),
            hugepages: options.toggle("hugepages")?.unwrap_or(default.hugepages),
            hugepage_size: options.size("hugepage_size")?,
            prefault: options.toggle("prefault")?.unwrap_or(default.prefault),
            reserve: options.toggle("reserve")?.unwrap_or(default.reserve),
            thp: options.toggle("thp")?.unwrap_or(default.thp),
            zones: None,
        })
    }
}

const ZONE_KEYS: [&str; 12] = [
    "id",
    "size",
    "file",
    "shared",
    "mergeable",
    "hugepages",
    "hugepage_size",
    "host_numa_node",
    "hotplug_size",
    "hotplugged_size",
    "prefault",
    "reserve",
];

impl FromStr for MemoryZoneConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &ZONE_KEYS, &[])?;
        Ok(MemoryZoneConfig {
            id: required("id", options.text("id"))?,
            size: required("size", options.size("size")?)?,
            file: options.text("file").map(Into::into),
            shared: options.toggle("shared")?.unwrap_or(false),
            mergeable: options.toggle("mergeable")?.unwrap_or(false),
            hugepages: options.toggle("hugepages")?.unwrap_or(false),
            hugepage_size: options.size("hugepage_size")?,
            host_numa_node: options.number("host_numa_node")?,
            hotplug_size: options.size("hotplug_size")?,
            hotplugged_size: options.size("hotplugged_size")?,
            prefault: options.toggle("prefault")?.unwrap_or(false),
            reserve: options.toggle("reserve")?.unwrap_or(false),
        })
    }
}
