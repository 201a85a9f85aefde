//! Persistent memory.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::PciCommon;

/// A virtio persistent-memory device.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// File or directory that backs it.
    pub file: PathBuf,
    /// Bytes; the file's size if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Whether writes stay private and are lost at the end.
    #[serde(default)]
    pub discard_writes: bool,
}
