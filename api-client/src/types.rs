//! Bodies of responses.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::VmConfig;

/// Answer of `vmm.ping`.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmPing {
    /// What exactly was built.
    pub build_version: String,
    /// Version of the release.
    pub version: String,
    /// Process that answers.
    pub pid: i64,
    /// What was built in.
    pub features: Vec<String>,
}

/// States of a virtual machine.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// Configured, not running.
    Created,
    /// Its vCPUs run.
    Running,
    /// It ended and can be booted again.
    Shutdown,
    /// Its vCPUs stand still.
    Paused,
    /// A debugger holds it.
    BreakPoint,
}

/// A device of a booted machine.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Identifier of the device.
    pub id: String,
    /// Address ranges and interrupts it holds.
    pub resources: Vec<serde_json::Value>,
    /// Device it hangs from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Devices that hang from it.
    #[serde(default)]
    pub children: Vec<String>,
    /// Place on the PCI bus, such as `0000:00:03.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_bdf: Option<String>,
}

/// Answer of `vm.info`.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// The configuration.
    pub config: VmConfig,
    /// The state.
    pub state: VmState,
    /// Bytes of memory that the guest has now.
    #[serde(default)]
    pub memory_actual_size: u64,
    /// The devices; only of a booted machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_tree: Option<BTreeMap<String, DeviceNode>>,
}

/// Answer of `vm.counters`: per device, counters by name.
pub type VmCounters = BTreeMap<String, BTreeMap<String, u64>>;

/// Answer to adding a device to a running machine.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDeviceInfo {
    /// Identifier of the device.
    pub id: String,
    /// Its place on the PCI bus.
    pub bdf: String,
}

/// Body of `vm.resize`: what is absent stays as it is.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmResize {
    /// How many vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_vcpus: Option<u32>,
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_ram: Option<u64>,
    /// Bytes that the balloon takes of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_balloon: Option<u64>,
}

/// Body of `vm.resize-disk`.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmResizeDisk {
    /// Identifier of the disk.
    pub id: String,
    /// Bytes that it is to have.
    pub desired_size: u64,
}

/// Body of `vm.resize-zone`.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmResizeZone {
    /// Identifier of the memory zone.
    pub id: String,
    /// Bytes that it is to have.
    pub desired_ram: u64,
}

/// Body of `vm.remove-device`.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveDevice {
    /// Identifier of the device.
    pub id: String,
}
