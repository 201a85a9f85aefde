//! Devices that live outside the VMM or pass through it, and small platform
//! devices.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::PciCommon;

/// A host device handed to the guest by VFIO.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// The device in sysfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The device as an open file descriptor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// NVIDIA GPUDirect clique of the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_nv_gpudirect_clique: Option<u8>,
    /// BARs that are not mapped into the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_exclude_mmap_bars: Option<Vec<u8>>,
}

/// A device served by another process over vfio-user.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDeviceConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// Socket of the process.
    pub socket: PathBuf,
}

/// A vDPA device of the host.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdpaConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// The host's device node.
    pub path: PathBuf,
    /// Queues.
    #[serde(default = "one_queue")]
    pub num_queues: usize,
}

impl Default for VdpaConfig {
    fn default() -> Self {
        VdpaConfig {
            pci_common: PciCommon::default(),
            path: PathBuf::new(),
            num_queues: one_queue(),
        }
    }
}

fn one_queue() -> usize {
    1
}

/// A virtio device of any type served by another process.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenericVhostUserConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// Socket of the process.
    pub socket: PathBuf,
    /// Descriptors in each queue.
    pub queue_sizes: Vec<u16>,
    /// Virtio device type.
    pub device_type: u32,
}

/// The real-time clock as a PCI device.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
}

/// A TPM emulated by another process.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmConfig {
    /// Control socket of the emulator.
    pub socket: PathBuf,
}
