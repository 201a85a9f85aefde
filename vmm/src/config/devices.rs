//! Devices on the PCI bus, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use api_client::config::{PciCommon, RngConfig, VmConfig};

use super::{ConfigError, check_id, console, disk, memory};
use crate::pci::FlagDevice;
use crate::virtio::balloon::BalloonParams;
use crate::virtio::block::DiskParams;
use crate::virtio::net::NetParams;
use crate::virtio::rate_limit::LimitParams;
use crate::virtio::vsock::VsockParams;

/// Places on the bus; the first belongs to the host bridge.
const PLACES: u8 = 32;

/// Devices that take no more than a flag, in the order of their slots.
const BY_FLAG: &[FlagDevice] = &[
    crate::virtio::watchdog::DEVICE,
    crate::devices::pvpanic::DEVICE,
];

/// The devices that a machine starts with, in the order in which they take
/// places on the bus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceParams {
    /// Limits that disks share, by name.
    pub limit_groups: BTreeMap<String, LimitParams>,
    /// Name and place of the console.
    pub console: Option<PciParams>,
    /// Disks.
    pub disks: Vec<PciDevice<DiskParams>>,
    /// Network devices.
    pub net: Vec<PciDevice<NetParams>>,
    /// An entropy device, and where its random bytes come from.
    pub rng: Option<PciDevice<PathBuf>>,
    /// Sockets between guest and host.
    pub vsock: Option<PciDevice<VsockParams>>,
    /// A memory balloon.
    pub balloon: Option<PciDevice<BalloonParams>>,
    /// What flags ask for.
    pub by_flag: Vec<&'static FlagDevice>,
}

/// Name and place of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PciParams {
    /// Its name; made up if absent.
    pub id: Option<String>,
    /// Its number on the bus; the next free one if absent.
    pub device: Option<u8>,
}

/// A device as it is asked for: what its own folder needs, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciDevice<P> {
    /// Name and place.
    pub pci: PciParams,
    /// The device.
    pub params: P,
}

impl TryFrom<&VmConfig> for DeviceParams {
    type Error = ConfigError;

    fn try_from(config: &VmConfig) -> Result<Self, ConfigError> {
        let limit_groups = disk::groups(config.rate_limit_groups.as_ref())?;
        let disks = config
            .disks
            .iter()
            .flatten()
            .map(|disk| PciDevice::<DiskParams>::new(disk, config.cpus.boot_vcpus, &limit_groups))
            .collect::<Result<_, _>>()?;
        let net = config
            .net
            .iter()
            .flatten()
            .map(|net| PciDevice::<NetParams>::new(net, config.cpus.boot_vcpus))
            .collect::<Result<_, _>>()?;
        let balloon = config
            .balloon
            .as_ref()
            .map(|balloon| PciDevice::<BalloonParams>::new(balloon, memory::total(&config.memory)))
            .transpose()?;
        Ok(Self {
            limit_groups,
            console: console::place(&config.console)?,
            disks,
            net,
            rng: Some(PciDevice::try_from(&config.rng)?),
            vsock: config.vsock.as_ref().map(PciDevice::try_from).transpose()?,
            balloon,
            by_flag: BY_FLAG
                .iter()
                .filter(|device| (device.is_wanted)(config))
                .collect(),
        })
    }
}

impl TryFrom<&RngConfig> for PciDevice<PathBuf> {
    type Error = ConfigError;

    fn try_from(config: &RngConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            pci: PciParams::try_from(&config.pci_common)?,
            params: config.src.clone(),
        })
    }
}

impl TryFrom<&PciCommon> for PciParams {
    type Error = ConfigError;

    fn try_from(config: &PciCommon) -> Result<Self, ConfigError> {
        if config.iommu {
            return Err(ConfigError::Unsupported(
                "iommu (a device behind a virtual IOMMU)".into(),
            ));
        }
        if config.pci_segment != 0 {
            return Err(ConfigError::PciSegment(config.pci_segment));
        }
        if let Some(id) = &config.id {
            check_id(id)?;
        }
        if let Some(device) = config.pci_device_id
            && !(1..PLACES).contains(&device)
        {
            return Err(ConfigError::PciDevice(device));
        }
        Ok(Self {
            id: config.id.clone(),
            device: config.pci_device_id,
        })
    }
}
