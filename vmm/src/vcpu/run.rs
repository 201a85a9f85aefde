//! The loop of a vCPU thread: obey, enter the guest, act on why it came back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::{Vcpu, VcpuKick, VmExit};
use instrumentation::user_exit::{RangeId, UserExitKind, UserExitRecorder};

use super::control::{Control, VcpuRunState};
use super::inspect::RegistersQuestion;
use super::io::VcpuIo;
use crate::event::{EventSink, MachineEvent};

// KVM_SYSTEM_EVENT_* of the kernel's interface.
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

/// The vCPU. Its thread holds the lock except while it is parked.
pub(super) type SharedVcpu = Arc<Mutex<Box<dyn Vcpu>>>;

/// All that a vCPU thread owns or shares.
pub(super) struct Runner {
    pub(super) id: u32,
    pub(super) vcpu: SharedVcpu,
    pub(super) io: VcpuIo,
    pub(super) recorder: Arc<UserExitRecorder>,
    pub(super) control: Arc<Control>,
    pub(super) kick: Arc<VcpuKick>,
    pub(super) registers: Arc<RegistersQuestion>,
    pub(super) events: EventSink,
}

impl Runner {
    pub(super) fn run(self) {
        let mut vcpu = lock(&self.vcpu);
        loop {
            if self.registers.is_asked() && !self.tell_registers(vcpu.as_mut()) {
                return;
            }
            match self.control.requested() {
                VcpuRunState::Running => {}
                VcpuRunState::Parked => {
                    if !self.complete_pending_io(vcpu.as_mut()) {
                        return;
                    }
                    vcpu.kvmclock_ctrl();
                    drop(vcpu);
                    if self.park() == VcpuRunState::Stopped {
                        return;
                    }
                    vcpu = lock(&self.vcpu);
                    continue;
                }
                VcpuRunState::Stopped => return,
            }
            if !self.step(vcpu.as_mut()) {
                return;
            }
        }
    }

    /// Enters the guest once and handles what made it exit. False when the
    /// guest is not to be entered again.
    fn step(&self, vcpu: &mut dyn Vcpu) -> bool {
        let exit = match vcpu.run(&self.io) {
            Ok(exit) => exit,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                return self.fail(format!(
                    "vCPU {}: {error}: {}",
                    self.id,
                    cause.unwrap_or_default()
                ));
            }
        };
        if let Some(kind) = kind_of(exit) {
            self.recorder.record(kind, RangeId::default(), 0, 0);
        }
        match exit {
            VmExit::Handled | VmExit::Interrupted | VmExit::Halt => true,
            VmExit::TripleFault | VmExit::SystemEvent(SYSTEM_EVENT_RESET) => {
                self.end(MachineEvent::Reset)
            }
            VmExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN) => self.end(MachineEvent::PowerOff),
            VmExit::SystemEvent(kind) => {
                self.fail(format!("vCPU {}: the guest crashed (event {kind})", self.id))
            }
            VmExit::EntryFailure { reason, cpu } => self.fail(format!(
                "vCPU {}: the processor refused to enter the guest: reason {reason:#x} on CPU {cpu}",
                self.id
            )),
            VmExit::InternalError(error) => {
                self.fail(format!("vCPU {}: KVM cannot go on: {error}", self.id))
            }
            VmExit::Unexpected(number) => {
                self.fail(format!("vCPU {}: unexpected exit {number}", self.id))
            }
        }
    }

    /// Answers an inspection. False when the guest is not to be entered again.
    fn tell_registers(&self, vcpu: &mut dyn Vcpu) -> bool {
        let complete = self.complete_pending_io(vcpu);
        // Whoever requests a state after this line sets the flag again; what was
        // requested before it, the caller looks at next.
        self.kick.set_immediate_exit(false);
        self.registers.answer(Some(vcpu.registers()));
        complete
    }

    /// Completes an I/O instruction that is half done: its result reaches the
    /// guest's registers with the next entry only. The request to exit at once
    /// makes KVM do that and nothing more; an instruction of several parts
    /// comes back for each.
    fn complete_pending_io(&self, vcpu: &mut dyn Vcpu) -> bool {
        self.kick.set_immediate_exit(true);
        loop {
            match vcpu.run(&self.io) {
                Ok(VmExit::Handled) => {}
                Ok(_) => return true,
                Err(error) => return self.fail(format!("vCPU {}: {error}", self.id)),
            }
        }
    }

    fn park(&self) -> VcpuRunState {
        let requested = self.control.park();
        // Whoever requests something after this line sets the flag again; what
        // was requested before it is what the caller gets.
        self.kick.set_immediate_exit(false);
        requested
    }

    fn fail(&self, text: String) -> bool {
        self.end(MachineEvent::Failed(text))
    }

    fn end(&self, event: MachineEvent) -> bool {
        self.events.send(event);
        false
    }
}

pub(super) fn lock(vcpu: &Mutex<Box<dyn Vcpu>>) -> MutexGuard<'_, Box<dyn Vcpu>> {
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the accounting names an exit; I/O is recorded where it is served.
fn kind_of(exit: VmExit) -> Option<UserExitKind> {
    match exit {
        VmExit::Handled => None,
        VmExit::Interrupted => Some(UserExitKind::Interrupted),
        VmExit::Halt => Some(UserExitKind::Hlt),
        VmExit::TripleFault => Some(UserExitKind::Shutdown),
        VmExit::SystemEvent(_) => Some(UserExitKind::SystemEvent),
        VmExit::EntryFailure { .. } => Some(UserExitKind::FailEntry),
        VmExit::InternalError(_) => Some(UserExitKind::InternalError),
        VmExit::Unexpected(_) => Some(UserExitKind::Other),
    }
}
