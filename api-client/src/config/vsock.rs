//! Sockets between guest and host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::PciCommon;

/// A virtio socket device.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// Context identifier of the guest, 3 or more.
    pub cid: u32,
    /// Unix socket on the host's side.
    pub socket: PathBuf,
}
