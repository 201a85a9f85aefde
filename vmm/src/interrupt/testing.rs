//! A hypervisor that only remembers what devices asked of it.

use std::sync::{Arc, Mutex};

use hypervisor::x86::state::{ClockPolicy, VmState};
use hypervisor::{Error, ExitStatsFeatures, ExitStatsSupport, IrqRoute, Result, Vcpu, Vm};
use vmm_sys_util::eventfd::EventFd;

use super::msi::MsiMessage;

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    /// The messages of the routing table.
    Routes(Vec<(u32, MsiMessage)>),
    Connect(u32),
    Disconnect(u32),
    Doorbell(u64),
    NoDoorbell(u64),
    Window(u32, u64, u64),
    NoWindow(u32),
}

/// Takes everything; nothing happens.
#[derive(Default)]
pub(crate) struct RecordingVm(Mutex<Vec<Call>>);

impl RecordingVm {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.0.lock().unwrap().clone()
    }

    fn note(&self, call: Call) -> Result<()> {
        self.0.lock().unwrap().push(call);
        Ok(())
    }
}

#[expect(unsafe_code, reason = "the trait's methods are unsafe to call")]
impl Vm for RecordingVm {
    fn create_local_apics(&self) -> Result<()> {
        Ok(())
    }

    fn use_wide_apic_ids(&self) -> Result<()> {
        Ok(())
    }

    fn create_vcpu(&self, _id: u32) -> Result<Box<dyn Vcpu>> {
        Err(Error::MissingCapability("vCPUs"))
    }

    unsafe fn map_memory(&self, _: u32, _: u64, _: u64, _: *mut u8) -> Result<()> {
        Ok(())
    }

    unsafe fn map_readonly_memory(
        &self,
        slot: u32,
        guest: u64,
        size: u64,
        _: *const u8,
    ) -> Result<()> {
        self.note(Call::Window(slot, guest, size))
    }

    fn unmap_memory(&self, slot: u32) -> Result<()> {
        self.note(Call::NoWindow(slot))
    }

    fn register_irqfd(&self, _: &EventFd, gsi: u32) -> Result<()> {
        self.note(Call::Connect(gsi))
    }

    fn unregister_irqfd(&self, _: &EventFd, gsi: u32) -> Result<()> {
        self.note(Call::Disconnect(gsi))
    }

    fn register_ioeventfd(&self, _: &EventFd, address: u64) -> Result<()> {
        self.note(Call::Doorbell(address))
    }

    fn unregister_ioeventfd(&self, _: &EventFd, address: u64) -> Result<()> {
        self.note(Call::NoDoorbell(address))
    }

    fn set_irq_routes(&self, routes: &[IrqRoute]) -> Result<()> {
        let messages = routes.iter().map(|route| {
            let IrqRoute { gsi, address, data } = *route;
            (gsi, MsiMessage { address, data })
        });
        self.note(Call::Routes(messages.collect()))
    }

    fn state(&self) -> Result<VmState> {
        unimplemented!("no test of interrupts asks for it")
    }
    fn set_state(&self, _: &VmState, _: ClockPolicy) -> Result<()> {
        unimplemented!("no test of interrupts asks for it")
    }
    fn signal_msi(&self, _address: u64, _data: u32) -> Result<()> {
        Ok(())
    }

    fn exit_stats_support(&self) -> ExitStatsSupport {
        ExitStatsSupport::default()
    }

    fn set_exit_stats_features(&self, _: ExitStatsFeatures) -> Result<()> {
        Ok(())
    }
}
