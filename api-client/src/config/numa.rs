//! NUMA nodes of the guest.

use serde::{Deserialize, Serialize};

/// Distance from one node to another.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaDistance {
    /// The other node.
    pub destination: u32,
    /// Relative latency; 10 is local.
    pub distance: u8,
}

/// A NUMA node of the guest.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NumaConfig {
    /// Number of the node.
    pub guest_numa_id: u32,
    /// Virtual CPUs on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Vec<u32>>,
    /// Distances to other nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distances: Option<Vec<NumaDistance>>,
    /// Memory zones on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_zones: Option<Vec<String>>,
    /// PCI segments on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_segments: Option<Vec<u16>>,
    /// Device that the node belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
}
