//! A booted machine: everything that exists from boot to shutdown.

use std::sync::Arc;

use hypervisor::Vm;

use super::device_tree::DeviceTree;
use crate::devices::serial::SerialInput;
use crate::memory::{GuestRam, ReadOnlyWindow};
use crate::vcpu::{Buses, VcpuHandle};

// A message to one local APIC by its number, delivered as an NMI (Intel SDM
// vol. 3, "Message Signalled Interrupts").
const LOCAL_APICS: u64 = 0xfee0_0000;
const DESTINATION_SHIFT: u32 = 12;
const DELIVER_NMI: u32 = 0b100 << 8;

/// Owned by the control thread. Fields are dropped in order: first the threads
/// that use the rest, last the memory that the guest used.
pub struct Machine {
    pub(super) vcpus: Vec<VcpuHandle>,
    /// The local APIC of each vCPU.
    pub(super) apic_ids: Vec<u32>,
    pub(super) input: Option<SerialInput>,
    pub(super) devices: DeviceTree,
    pub(super) buses: Buses,
    pub(super) vm: Arc<dyn Vm>,
    pub(super) _reset_vector: ReadOnlyWindow,
    pub(super) ram: GuestRam,
}

impl Machine {
    /// The devices on the PCI bus.
    #[must_use]
    pub fn devices(&self) -> &DeviceTree {
        &self.devices
    }

    /// The devices on the PCI bus, to be changed.
    pub fn devices_mut(&mut self) -> &mut DeviceTree {
        &mut self.devices
    }

    /// The guest's memory. Whoever keeps a clone keeps the memory.
    #[must_use]
    pub(super) fn memory(&self) -> GuestRam {
        self.ram.clone()
    }

    /// Interrupts every vCPU in a way that it cannot mask.
    pub fn send_nmi(&self) -> hypervisor::Result<()> {
        for &id in &self.apic_ids {
            // The bits of a wide id above the eighth are in the address's upper half.
            let (low, high) = (u64::from(id & 0xff), u64::from(id & !0xff));
            let address = LOCAL_APICS | low << DESTINATION_SHIFT | high << 32;
            self.vm.signal_msi(address, DELIVER_NMI)?;
        }
        Ok(())
    }

    /// Lets everything go on: devices before the vCPUs that wait for them.
    pub fn resume(&mut self) {
        self.devices.resume();
        if let Some(input) = &mut self.input {
            input.resume();
        }
        for vcpu in &self.vcpus {
            vcpu.resume();
        }
    }

    /// Stops everything, and returns when nothing in this process changes the
    /// guest's memory, its vCPUs or its devices any more.
    pub fn pause(&mut self) {
        for vcpu in &self.vcpus {
            vcpu.request_pause();
        }
        for vcpu in &self.vcpus {
            vcpu.wait_parked();
        }
        if let Some(input) = &mut self.input {
            input.pause();
        }
        self.devices.pause();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All at once; each handle then waits for its own thread.
        for vcpu in &self.vcpus {
            vcpu.request_stop();
        }
        self.vcpus.clear();
        // Its thread holds the serial port and with it an interrupt, which it may
        // not be the last to hold: only this thread may take interrupts apart.
        self.input = None;
        self.buses.pio.clear();
        self.buses.mmio.clear();
    }
}
