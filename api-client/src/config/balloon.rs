//! The memory balloon.

use serde::{Deserialize, Serialize};

use super::PciCommon;

/// A virtio balloon device.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// Bytes taken from the guest.
    pub size: u64,
    /// Whether the guest may take memory back rather than run out of it.
    #[serde(default)]
    pub deflate_on_oom: bool,
    /// Whether the guest reports pages that it does not use.
    #[serde(default)]
    pub free_page_reporting: bool,
}
