//! The entropy device.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::PciCommon;

/// A virtio entropy device.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RngConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// File that the random bytes come from.
    pub src: PathBuf,
}

impl Default for RngConfig {
    fn default() -> Self {
        RngConfig {
            pci_common: PciCommon::default(),
            src: PathBuf::from("/dev/urandom"),
        }
    }
}
