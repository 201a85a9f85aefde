//! The traits between the VMM and a hypervisor, and the small types they
//! speak in.

use std::sync::Arc;

use instrumentation::table::Isa;
use vmm_sys_util::eventfd::EventFd;

use crate::internal_error::InternalError;
use crate::kvm::ExitStatsSupport;
use crate::kvm::kick::VcpuKick;
use crate::stats_fd::{StatsError, StatsFd};
use crate::x86::state::{ClockPolicy, ExitCountersState, VcpuState, VmState};
use crate::x86::{CpuidEntry, Registers, SpecialRegisters};

/// What went wrong in a call to the hypervisor. The operation is named here,
/// the kernel's own word on it is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device node of the hypervisor cannot be opened.
    #[error("Cannot open {path}")]
    Open {
        /// The device node.
        path: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The kernel speaks another version of the interface.
    #[error("KVM speaks interface version {0}, this program speaks 12")]
    ApiVersion(i32),
    /// A capability without which no guest can be run is missing.
    #[error("KVM lacks the capability {0}")]
    MissingCapability(&'static str),
    /// A request to the kernel failed.
    #[error("Cannot {operation}")]
    Ioctl {
        /// What was asked, as the rest of "cannot ...".
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// Fewer model-specific registers were taken than offered.
    #[error("KVM refused the model-specific register {0:#x}")]
    Msr(u32),
    /// A table given to the kernel is longer than the kernel allows.
    #[error("Too many entries for the kernel's {0}")]
    TooManyEntries(&'static str),
    /// A part of a saved state has another size than this host's.
    #[error("{part} has {found} elements, {expected} belong there")]
    State {
        /// The part.
        part: &'static str,
        /// Its length.
        found: usize,
        /// The length it has to have, or at most.
        expected: usize,
    },
    /// Exit counters that do not fit the kernel's.
    #[error("The exit counters of a vCPU do not fit: {0}")]
    ExitCounters(&'static str),
    /// The statistics cannot be opened or read.
    #[error("Cannot read the vCPU's statistics")]
    Stats(#[from] StatsError),
}

/// Result of a call to the hypervisor.
pub type Result<T> = std::result::Result<T, Error>;

/// The way into a hypervisor. Shared by all threads.
pub trait Hypervisor: Send + Sync {
    /// Creates an empty virtual machine.
    fn create_vm(&self) -> Result<Arc<dyn Vm>>;
    /// The CPUID leaves the host can offer to a guest.
    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>>;
    /// Whether the local APIC's deadline timer is available to guests.
    fn has_tsc_deadline_timer(&self) -> bool;
    /// The most vCPUs one VM can have.
    fn max_vcpus(&self) -> usize;
    /// What the kernel says of its exit accounting at the moment.
    fn exit_stats_support(&self) -> ExitStatsSupport;
    /// The instruction set of the host's virtualisation.
    fn isa(&self) -> Option<Isa>;
}

/// The message to local APICs that an interrupt of a given number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IrqRoute {
    /// The interrupt's number.
    pub gsi: u32,
    /// The message's address.
    pub address: u64,
    /// The message's data.
    pub data: u32,
}

/// What a VM can ask of the kernel's exit accounting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatsFeatures {
    /// The guest's CPUID leaves answer.
    pub guest_leaves: bool,
    /// Latency histograms are kept.
    pub latency: bool,
}

/// One virtual machine: memory slots, interrupt routing, vCPUs. Shared by the
/// control thread and device threads.
pub trait Vm: Send + Sync {
    /// Gives the vCPUs to come local APICs in the hypervisor. There is no other
    /// interrupt controller: interrupts are messages.
    fn create_local_apics(&self) -> Result<()>;
    /// Lets messages name local APICs by 32 bits: those of the destination above
    /// the eighth are bits 40 to 63 of a message's address.
    fn use_wide_apic_ids(&self) -> Result<()>;
    /// Creates a vCPU. Its number is its local APIC's number too.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>>;
    /// Shows `size` bytes of this process's memory to the guest.
    ///
    /// # Safety
    /// `host` to `host + size` must stay mapped, readable and writable until
    /// the VM is gone, and nothing else in this process may keep Rust
    /// references into it, for the guest writes there at any time.
    unsafe fn map_memory(&self, slot: u32, guest: u64, size: u64, host: *mut u8) -> Result<()>;
    /// Shows `size` bytes of this process's memory to the guest for reading.
    /// What the guest writes there comes out as memory-mapped I/O.
    ///
    /// # Safety
    /// `host` to `host + size` must stay mapped and readable until
    /// [`unmap_memory`](Self::unmap_memory) of the same slot or the end of the
    /// VM, and must not change under Rust references that somebody keeps.
    unsafe fn map_readonly_memory(
        &self,
        slot: u32,
        guest: u64,
        size: u64,
        host: *const u8,
    ) -> Result<()>;
    /// Takes memory away from the guest.
    fn unmap_memory(&self, slot: u32) -> Result<()>;
    /// Has `event` raise the interrupt `gsi` whenever it is signalled.
    fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()>;
    /// Undoes [`register_irqfd`](Self::register_irqfd).
    fn unregister_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()>;
    /// Has the guest's writes to `address`, of whatever width, signal `event`
    /// and do nothing else.
    fn register_ioeventfd(&self, event: &EventFd, address: u64) -> Result<()>;
    /// Undoes [`register_ioeventfd`](Self::register_ioeventfd).
    fn unregister_ioeventfd(&self, event: &EventFd, address: u64) -> Result<()>;
    /// Sets the whole interrupt routing table.
    fn set_irq_routes(&self, routes: &[IrqRoute]) -> Result<()>;
    /// The state beside vCPUs, memory and interrupt routes.
    fn state(&self) -> Result<VmState>;
    /// Sets what [`state`](Self::state) told, before the first vCPU runs.
    fn set_state(&self, state: &VmState, policy: ClockPolicy) -> Result<()>;
    /// Sends a message to local APICs, as a device would.
    fn signal_msi(&self, address: u64, data: u32) -> Result<()>;
    /// What the kernel says of this VM's exit accounting.
    fn exit_stats_support(&self) -> ExitStatsSupport;
    /// The file in which the kernel shows this VM's latency histograms as text; an
    /// error where this process may not open it.
    fn latency_file(&self) -> std::io::Result<std::fs::File> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    /// Asks for exactly these features of the exit accounting; an error on a
    /// kernel that has none.
    fn set_exit_stats_features(&self, features: ExitStatsFeatures) -> Result<()>;
}

/// What a vCPU starts with.
#[derive(Debug, Clone)]
pub struct VcpuSetup {
    /// The answers of the CPUID instruction.
    pub cpuid: Vec<CpuidEntry>,
    /// Model-specific registers and their values.
    pub msrs: Vec<(u32, u64)>,
    /// General and special registers; `None` leaves the vCPU waiting for the
    /// start-up message of another one.
    pub registers: Option<(Registers, SpecialRegisters)>,
    /// Start the local APIC in x2APIC mode.
    pub x2apic: bool,
    /// Start with all the extended state that the CPUID leaves announce
    /// enabled (XCR0), as firmware may leave it. Hosts that do not report a
    /// guest's own change of XCR0, such as QEMU's emulated SVM, otherwise
    /// contradict the guest, which then gives that state up.
    pub extended_state: bool,
}

/// One virtual CPU. Belongs to the thread that runs it; [`VcpuKick`] is the
/// one thing others may hold.
pub trait Vcpu: Send {
    /// Puts the vCPU into its first state.
    fn set_up(&mut self, setup: &VcpuSetup) -> Result<()>;
    /// Runs the guest until something that is not port or memory-mapped I/O
    /// needs attention. I/O goes to `ops`, and the call returns
    /// [`VmExit::Handled`] after it, so that the caller can look at requests.
    fn run(&mut self, ops: &dyn VmOps) -> Result<VmExit>;
    /// A handle that makes `run` return.
    fn kick_handle(&self) -> Result<Arc<VcpuKick>>;
    /// Opens the vCPU's statistics.
    fn stats(&self) -> Result<StatsFd>;
    /// The frequency of the guest's time stamp counter, which is the host's
    /// unless somebody scaled it.
    fn tsc_khz(&self) -> Result<u32>;
    /// Tells the guest that it was stopped, so that its watchdogs forgive the
    /// lost time. No effect on guests without kvmclock.
    fn kvmclock_ctrl(&self);
    /// The registers of a vCPU that is out of the guest, with no I/O half done.
    ///
    /// # Errors
    /// The hypervisor does not tell.
    fn registers(&self) -> Result<(Registers, SpecialRegisters)>;
    /// The whole state of a vCPU that stands still: after [`run`](Self::run)
    /// returned [`VmExit::Interrupted`], so that no I/O is half done.
    fn state(&self) -> Result<VcpuState>;
    /// Sets what [`state`](Self::state) told, on a vCPU that has not run.
    /// Replaces [`set_up`](Self::set_up).
    ///
    /// # Errors
    /// A part that does not fit this host: a length, or what the kernel
    /// refuses. The vCPU must not be run then.
    fn set_state(&mut self, state: &VcpuState, policy: ClockPolicy) -> Result<()>;
    /// The exit counters of a vCPU that stands still; `None` where the kernel
    /// cannot give them as a whole: below version 2 of
    /// [`ExitStatsSupport`].
    fn exit_counters(&self) -> Result<Option<ExitCountersState>>;
    /// Has the exit counters go on from what [`exit_counters`](Self::exit_counters)
    /// told, on a vCPU that has not run.
    ///
    /// # Errors
    /// A kernel below version 2, counters of another instruction set or shape,
    /// or a vCPU that has run.
    fn set_exit_counters(&mut self, state: &ExitCountersState) -> Result<()>;
}

/// What a running vCPU asks of the world outside. Reads of addresses that
/// nobody owns return all ones, writes to them are dropped; neither fails.
pub trait VmOps {
    /// IN from `port`; `data` is one element of 1, 2 or 4 bytes.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// OUT to `port`.
    fn pio_write(&self, port: u16, data: &[u8]);
    /// Load from `address`, 1 to 8 bytes.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// Store to `address`.
    fn mmio_write(&self, address: u64, data: &[u8]);
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmExit {
    /// I/O was passed to [`VmOps`]; go on.
    Handled,
    /// A signal or a kick; look at requests, then go on.
    Interrupted,
    /// The guest halted and no interrupt controller in the kernel wakes it.
    Halt,
    /// A triple fault: the guest asks for a reset.
    TripleFault,
    /// The guest asked the hypervisor itself for a shutdown, a reset or
    /// reported a crash; the number is KVM's event type.
    SystemEvent(u32),
    /// The processor refused to enter the guest.
    EntryFailure {
        /// The hardware's reason.
        reason: u64,
        /// The host CPU it happened on.
        cpu: u32,
    },
    /// KVM met an instruction or a state that it cannot emulate.
    InternalError(InternalError),
    /// An exit that this program never asked for; KVM's number.
    Unexpected(u32),
}
