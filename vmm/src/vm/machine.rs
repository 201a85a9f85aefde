//! A booted machine: everything that exists from boot to shutdown.

use std::sync::Arc;

use hypervisor::Vm;
use hypervisor::x86::state::VmState;
use instrumentation::table::Isa;
use instrumentation::user_exit::RangeMap;
use serde::{Deserialize, Serialize};

use super::builder::Carried;
use super::device_tree::{BusState, DeviceTree, SaveError};
use super::legacy::{LegacyDevices, LegacyState};
use super::snapshot::SavedVm;
use crate::devices::serial::SerialInput;
use crate::memory::{GuestRam, ReadOnlyWindow};
use crate::vcpu::{Buses, VcpuHandle, VcpuSnapshot};

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
    pub(super) legacy: LegacyDevices,
    /// It has what firmware looks for.
    pub(super) is_pc: bool,
    pub(super) buses: Buses,
    pub(super) ranges: Arc<RangeMap>,
    pub(super) vm: Arc<dyn Vm>,
    pub(super) _reset_vector: ReadOnlyWindow,
    pub(super) ram: GuestRam,
}

/// A machine as it is saved, beside its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    pub(super) is_pc: bool,
    pub(super) vm: VmState,
    pub(super) vcpus: Vec<VcpuSnapshot>,
    pub(super) legacy: LegacyState,
    pub(super) bus: BusState,
}

impl Machine {
    /// The machine as it is, while it is paused.
    ///
    /// # Errors
    /// A device is being removed, or the hypervisor does not tell.
    pub fn save(&self) -> Result<MachineState, SaveError> {
        let Self {
            vcpus,
            // From the configuration.
            apic_ids: _,
            input,
            devices,
            legacy,
            is_pc,
            buses: _,
            ranges: _,
            vm,
            _reset_vector: _,
            ram: _,
        } = self;
        // Devices first: what they raised is in the vCPUs' state then.
        let bus = devices.save()?;
        let legacy = legacy.save(input.as_ref())?;
        let vcpus = vcpus.iter().map(VcpuHandle::save);
        Ok(MachineState {
            is_pc: *is_pc,
            vcpus: vcpus.collect::<hypervisor::Result<_>>()?,
            vm: vm.state()?,
            legacy,
            bus,
        })
    }

    /// All that is kept of the machine, while it is paused, beside its
    /// configuration and the content of its memory.
    ///
    /// # Errors
    /// As for [`save`](Self::save).
    pub(super) fn save_vm(&self, isa: Option<Isa>, boot_id: String) -> Result<SavedVm, SaveError> {
        let recorders = self.vcpus.iter().map(|vcpu| vcpu.recorder().as_ref());
        let machine = self.save()?;
        Ok(SavedVm::new(
            machine,
            isa,
            boot_id,
            &self.ram,
            &self.ranges,
            recorders,
        ))
    }

    /// What a machine that is made of the state of this one takes over.
    #[must_use]
    pub fn carried(&self) -> Carried {
        let recorders = self.vcpus.iter().map(VcpuHandle::recorder);
        Carried {
            ram: self.ram.clone(),
            recorders: recorders.cloned().collect(),
            ranges: Arc::clone(&self.ranges),
        }
    }

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
        self.devices.gate().retire();
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
