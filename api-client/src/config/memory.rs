//! Guest memory.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Memory of a virtual machine that does not say how much it wants: 512 MiB.
pub const DEFAULT_MEMORY_SIZE: u64 = 512 << 20;

/// Guest memory: how much and how the host backs it.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryConfig {
    /// Bytes at boot; 0 when zones describe the memory.
    pub size: u64,
    /// Whether the host may merge equal pages.
    pub mergeable: bool,
    /// How memory is added and removed later.
    pub hotplug_method: HotplugMethod,
    /// Bytes that can be added at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
    /// Bytes already added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hotplugged_size: Option<u64>,
    /// Whether other processes can map the memory.
    pub shared: bool,
    /// Whether to take it from the host's huge page pool.
    pub hugepages: bool,
    /// Size of a huge page; the host's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// Whether to touch all of it at boot.
    pub prefault: bool,
    /// Whether to reserve swap or huge pages at once.
    pub reserve: bool,
    /// Whether transparent huge pages are asked for.
    pub thp: bool,
    /// Regions with backing of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zones: Option<Vec<MemoryZoneConfig>>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        MemoryConfig {
            size: DEFAULT_MEMORY_SIZE,
            mergeable: false,
            hotplug_method: HotplugMethod::default(),
            hotplug_size: None,
            hotplugged_size: None,
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            reserve: false,
            thp: true,
            zones: None,
        }
    }
}

/// How memory is added to a running guest.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HotplugMethod {
    /// Whole memory devices, announced by ACPI.
    #[default]
    Acpi,
    /// A virtio-mem device that grows and shrinks.
    VirtioMem,
}

/// A region of guest memory with backing of its own.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryZoneConfig {
    /// Name of the zone.
    pub id: String,
    /// Bytes at boot.
    pub size: u64,
    /// File or directory that backs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Whether other processes can map it.
    #[serde(default)]
    pub shared: bool,
    /// Whether the host may merge equal pages.
    #[serde(default)]
    pub mergeable: bool,
    /// Whether to take it from the host's huge page pool.
    #[serde(default)]
    pub hugepages: bool,
    /// Size of a huge page; the host's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// NUMA node of the host to take it from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_numa_node: Option<u32>,
    /// Bytes that can be added at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
    /// Bytes already added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplugged_size: Option<u64>,
    /// Whether to touch all of it at boot.
    #[serde(default)]
    pub prefault: bool,
    /// Whether to reserve swap or huge pages at once.
    #[serde(default)]
    pub reserve: bool,
}
