//! Snapshot and restore.

use serde::{Deserialize, Serialize};

/// Body of `vm.snapshot`.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSnapshotConfig {
    /// Directory to write to: `file://` and its absolute path.
    pub destination_url: String,
}

/// Body of `vm.restore`.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreConfig {
    /// Directory of the snapshot: `file://` and its absolute path.
    pub source_url: String,
    /// Touch every page of memory before the guest goes on.
    #[serde(default)]
    pub prefault: bool,
    /// How memory comes back.
    #[serde(default)]
    pub memory_restore_mode: MemoryRestoreMode,
    /// New descriptors for network devices that had some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_fds: Option<Vec<RestoredNetConfig>>,
    /// Let the guest go on at once.
    #[serde(default)]
    pub resume: bool,
}

/// How memory comes back.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemoryRestoreMode {
    /// All of it is read before the guest goes on.
    #[default]
    Copy,
    /// A page is read when it is needed. The snapshot must stay meanwhile.
    OnDemand,
}

/// New descriptors for a network device.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredNetConfig {
    /// Identifier of the device.
    pub id: String,
    /// How many descriptors.
    #[serde(default)]
    pub num_fds: usize,
    /// The descriptors, one for each pair of queues. In a request they only say
    /// how many of those that come along are this device's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fds: Option<Vec<i32>>,
}

impl RestoredNetConfig {
    /// How many of the descriptors that come along are this device's.
    #[must_use]
    pub fn count(&self) -> usize {
        self.fds.as_ref().map_or(self.num_fds, Vec::len)
    }
}
