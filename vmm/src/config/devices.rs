//! Devices on the PCI bus, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use api_client::config::{PciCommon, RngConfig, VmConfig};

use super::balloon::MemoryBalloon;
use super::console;
use super::disk::{self, DiskParams};
use super::memory;
use super::net::NicParams;
use super::vsock::VsockParams;
use super::{ConfigError, check_id};
use crate::virtio::rate_limit::LimitParams;

/// Places on the bus; the first belongs to the host bridge.
const PLACES: u8 = 32;

/// The devices that a machine starts with, in the order in which they take
/// places on the bus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceParams {
    /// Limits that disks share, by name.
    pub limit_groups: BTreeMap<String, LimitParams>,
    /// Name and place of the console.
    pub console: Option<PciParams>,
    /// Disks.
    pub disks: Vec<DiskParams>,
    /// Network devices.
    pub net: Vec<NicParams>,
    /// An entropy device.
    pub rng: Option<RngParams>,
    /// Sockets between guest and host.
    pub vsock: Option<VsockParams>,
    /// A memory balloon.
    pub balloon: Option<MemoryBalloon>,
    /// A watchdog.
    pub watchdog: bool,
}

/// Name and place of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PciParams {
    /// Its name; made up if absent.
    pub id: Option<String>,
    /// Its number on the bus; the next free one if absent.
    pub device: Option<u8>,
}

/// An entropy device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RngParams {
    /// Name and place.
    pub pci: PciParams,
    /// Where the random bytes come from.
    pub source: PathBuf,
}

impl TryFrom<&VmConfig> for DeviceParams {
    type Error = ConfigError;

    fn try_from(config: &VmConfig) -> Result<Self, ConfigError> {
        let limit_groups = disk::groups(config.rate_limit_groups.as_ref())?;
        let disks = config
            .disks
            .iter()
            .flatten()
            .map(|disk| DiskParams::new(disk, config.cpus.boot_vcpus, &limit_groups))
            .collect::<Result<_, _>>()?;
        let net = config
            .net
            .iter()
            .flatten()
            .map(|net| NicParams::new(net, config.cpus.boot_vcpus))
            .collect::<Result<_, _>>()?;
        let balloon = config
            .balloon
            .as_ref()
            .map(|balloon| MemoryBalloon::new(balloon, memory::total(&config.memory)))
            .transpose()?;
        Ok(Self {
            limit_groups,
            console: console::place(&config.console)?,
            disks,
            net,
            rng: Some(RngParams::try_from(&config.rng)?),
            vsock: config
                .vsock
                .as_ref()
                .map(VsockParams::try_from)
                .transpose()?,
            balloon,
            watchdog: config.watchdog,
        })
    }
}

impl TryFrom<&RngConfig> for RngParams {
    type Error = ConfigError;

    fn try_from(config: &RngConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            pci: PciParams::try_from(&config.pci_common)?,
            source: config.src.clone(),
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
