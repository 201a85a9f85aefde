//! A booted machine: everything that exists from boot to shutdown.

use std::sync::Arc;

use hypervisor::Vm;

use super::devices::DeviceSet;
use crate::devices::serial::SerialInput;
use crate::memory::GuestRam;
use crate::vcpu::{Buses, VcpuHandle};

/// Owned by the control thread. Fields are dropped in order: first the threads
/// that use the rest, last the memory that the guest used.
pub struct Machine {
    vcpus: Vec<VcpuHandle>,
    _input: Option<SerialInput>,
    devices: DeviceSet,
    buses: Buses,
    _vm: Arc<dyn Vm>,
    _ram: GuestRam,
}

impl Machine {
    pub(super) fn new(
        vcpus: Vec<VcpuHandle>,
        input: Option<SerialInput>,
        devices: DeviceSet,
        buses: Buses,
        vm: Arc<dyn Vm>,
        ram: GuestRam,
    ) -> Self {
        Self {
            vcpus,
            _input: input,
            devices,
            buses,
            _vm: vm,
            _ram: ram,
        }
    }

    /// The devices on the PCI bus.
    #[must_use]
    pub fn devices(&self) -> &DeviceSet {
        &self.devices
    }

    /// The devices on the PCI bus, to be changed.
    pub fn devices_mut(&mut self) -> &mut DeviceSet {
        &mut self.devices
    }

    /// Lets all vCPUs run.
    pub fn resume(&self) {
        self.devices.hold_watchdog(false);
        for vcpu in &self.vcpus {
            vcpu.resume();
        }
    }

    /// Stops all vCPUs and returns when they stand still.
    pub fn pause(&self) {
        for vcpu in &self.vcpus {
            vcpu.request_pause();
        }
        for vcpu in &self.vcpus {
            vcpu.wait_parked();
        }
        self.devices.hold_watchdog(true);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All at once; each handle then waits for its own thread.
        for vcpu in &self.vcpus {
            vcpu.request_stop();
        }
        self.vcpus.clear();
        self.buses.pio.clear();
        self.buses.mmio.clear();
    }
}
