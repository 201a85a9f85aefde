//! Virtual CPUs: what they look like to the guest, the threads that run them,
//! and how the control thread stops and starts those threads.

mod control;
pub mod cpuid;
mod inspect;
mod io;
pub mod msr;
mod run;

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use hypervisor::x86::state::{ExitCountersState, VcpuState};
use hypervisor::{Vcpu, VcpuKick};
use instrumentation::user_exit::UserExitRecorder;
use serde::{Deserialize, Serialize};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::event::EventSink;
use crate::sandbox::{ThreadKind, bind_to_cpus, spawn};

use control::Control;
pub use control::VcpuRunState;
use inspect::RegistersQuestion;
pub use inspect::VcpuView;
use io::VcpuIo;
use run::SharedVcpu;

/// Why a vCPU cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The thread could not be started.
    #[error("Cannot start the thread of vCPU {0}")]
    Spawn(u32, #[source] std::io::Error),
    /// The hypervisor refused.
    #[error("Cannot prepare vCPU {0}")]
    Prepare(u32, #[source] hypervisor::Error),
    /// The host has no such CPUs, or does not give them.
    #[error("Cannot bind vCPU {0} to CPUs {1:?} of the host")]
    Bind(u32, Vec<usize>, #[source] std::io::Error),
    /// The signal that interrupts vCPUs is not available.
    #[error("Cannot install the signal that interrupts vCPUs")]
    Signal(#[source] vmm_sys_util::errno::Error),
}

/// The buses a vCPU's accesses go to.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
}

/// The signal whose only purpose is to make a system call return.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// Makes the process survive the signal. Once, before the first vCPU.
pub fn install_kick_handler() -> Result<(), VcpuError> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(kick_signal(), ignore).map_err(VcpuError::Signal)
}

/// A vCPU as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuSnapshot {
    /// Registers and what is on its way to it.
    pub state: VcpuState,
    /// What the hypervisor has counted.
    pub exit_counters: Option<ExitCountersState>,
}

/// The control thread's handle of one vCPU thread. The thread starts parked.
/// Dropping the handle stops and joins it.
pub struct VcpuHandle {
    vcpu: SharedVcpu,
    recorder: Arc<UserExitRecorder>,
    control: Arc<Control>,
    kick: Arc<VcpuKick>,
    registers: Arc<RegistersQuestion>,
    thread: Arc<VcpuThread>,
}

/// The thread, until somebody has waited for its end.
#[derive(Default)]
struct VcpuThread(Mutex<Option<JoinHandle<()>>>);

impl VcpuThread {
    /// Makes a system call of the thread return.
    fn interrupt(&self) {
        let thread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*thread
            && let Err(error) = thread.kill(kick_signal())
        {
            // The thread has ended already; nothing is left to interrupt.
            log::debug!("no vCPU to interrupt: {error}");
        }
    }

    fn take(&self) -> Option<JoinHandle<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl VcpuHandle {
    /// Starts the thread of vCPU `id`, on these of the host's CPUs; on any of
    /// them, if none is named.
    pub fn start(
        id: u32,
        vcpu: Box<dyn Vcpu>,
        buses: &Buses,
        recorder: Arc<UserExitRecorder>,
        events: &EventSink,
        cpus: Vec<usize>,
    ) -> Result<Self, VcpuError> {
        let kick = vcpu
            .kick_handle()
            .map_err(|source| VcpuError::Prepare(id, source))?;
        let control = Arc::new(Control::new());
        let vcpu = Arc::new(Mutex::new(vcpu));
        let registers = Arc::new(RegistersQuestion::default());
        let runner = run::Runner {
            id,
            vcpu: Arc::clone(&vcpu),
            io: VcpuIo::new(buses.clone(), Arc::clone(&recorder)),
            recorder: Arc::clone(&recorder),
            control: Arc::clone(&control),
            kick: Arc::clone(&kick),
            registers: Arc::clone(&registers),
            events: events.clone(),
        };
        let guard = control::ExitGuard::new(Arc::clone(&control));
        let (bound, outcome) = mpsc::sync_channel(1);
        let wanted = cpus.clone();
        let thread = spawn(
            &format!("vcpu{id}"),
            ThreadKind::Vcpu,
            events.clone(),
            move || {
                // Also when the thread panics, whoever waits for it goes on.
                let _guard = guard;
                let binding = bind_to_cpus(&wanted);
                let is_bound = binding.is_ok();
                // Nobody listens if starting was given up.
                let _ = bound.send(binding);
                if is_bound {
                    runner.run();
                }
            },
        )
        .map_err(|source| VcpuError::Spawn(id, source))?;
        let handle = Self {
            vcpu,
            recorder,
            control,
            kick,
            registers,
            thread: Arc::new(VcpuThread(Mutex::new(Some(thread)))),
        };
        match outcome.recv() {
            // A thread that ended before it answered has told why by itself.
            Ok(Ok(())) | Err(_) => Ok(handle),
            Ok(Err(source)) => Err(VcpuError::Bind(id, cpus, source)),
        }
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        self.control.request(VcpuRunState::Running);
    }

    /// Asks the vCPU to stop; see [`wait_parked`](Self::wait_parked). Asking
    /// all vCPUs before waiting for the first makes them stop together.
    pub fn request_pause(&self) {
        self.control.request(VcpuRunState::Parked);
        self.interrupt();
    }

    /// Waits until the vCPU is stopped between two instructions.
    pub fn wait_parked(&self) {
        self.control.wait_paused();
    }

    /// The vCPU as it is while it is parked, and what the hypervisor has counted
    /// of it where that can be carried to another one.
    ///
    /// # Errors
    /// The hypervisor does not tell.
    pub fn save(&self) -> hypervisor::Result<VcpuSnapshot> {
        let vcpu = run::lock(&self.vcpu);
        Ok(VcpuSnapshot {
            state: vcpu.state()?,
            exit_counters: vcpu.exit_counters()?,
        })
    }

    /// What its thread counts of the exits that come to the VMM.
    #[must_use]
    pub fn recorder(&self) -> &Arc<UserExitRecorder> {
        &self.recorder
    }

    /// Asks the thread to end.
    pub fn request_stop(&self) {
        self.control.request(VcpuRunState::Stopped);
        self.interrupt();
    }

    fn interrupt(&self) {
        self.kick.set_immediate_exit(true);
        self.thread.interrupt();
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.request_stop();
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
