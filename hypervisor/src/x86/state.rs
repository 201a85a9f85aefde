//! What has to be carried from one vCPU or VM to another for the guest to go
//! on as if nothing had happened. Plain data: read from a file it is not
//! trusted, and the kernel checks what is set.

use instrumentation::snapshot::ReasonArrays;
use instrumentation::table::Isa;
use serde::{Deserialize, Serialize};

use super::{CpuidEntry, Registers, SpecialRegisters};

/// The whole state of a vCPU that stands still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// The answers of the CPUID instruction.
    pub cpuid: Vec<CpuidEntry>,
    /// Whether it runs, is halted or waits for a start-up message.
    pub run_state: RunState,
    /// General-purpose registers.
    pub registers: Registers,
    /// Segment, control and table registers.
    pub special: SpecialRegisters,
    /// The XSAVE area as the processor lays it out: FPU, SSE, AVX and so on;
    /// whole 32-bit words, at least 1,024 of them.
    pub xsave: Vec<u32>,
    /// Extended control registers, as number and value. Empty on hosts without
    /// XSAVE.
    pub xcrs: Vec<(u32, u64)>,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// The registers of the local APIC, a byte each as in its page of 1,024;
    /// empty without a local APIC in the hypervisor.
    pub local_apic: Vec<u8>,
    /// Model-specific registers, as number and value: all that the kernel says
    /// must be saved and that could be read. The time stamp counter is not
    /// among them.
    pub msrs: Vec<(u32, u64)>,
    /// Events on their way into the vCPU.
    pub events: VcpuEvents,
    /// The time stamp counter.
    pub tsc: TscState,
    /// The state of a hypervisor in the guest, in the kernel's layout; `None`
    /// where the kernel has no way to tell or the guest runs none.
    pub nested: Option<Vec<u8>>,
}

/// The exit counters of a vCPU that stands still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCountersState {
    /// Whose exit reasons the arrays are of.
    pub isa: Option<Isa>,
    /// KVM's own count of exits.
    pub exits: u64,
    /// Ticks in the guest.
    pub guest_cycles: u64,
    /// Counts and ticks by slot.
    pub arrays: ReasonArrays,
}

/// The activity of a vCPU (Linux, Documentation/virt/kvm/api.rst,
/// KVM_GET_MP_STATE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Executes instructions.
    Runnable,
    /// Waits for the INIT message of another vCPU.
    Uninitialized,
    /// Has had INIT, waits for SIPI.
    InitReceived,
    /// Executed HLT.
    Halted,
    /// Has had SIPI and has not started yet.
    SipiReceived,
    /// Another state of the kernel's, by its number.
    Other(u32),
}

/// The debug registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub addresses: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
}

/// Events on their way into a vCPU (Linux, KVM_GET_VCPU_EVENTS).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuEvents {
    /// An exception.
    pub exception: ExceptionEvent,
    /// An external interrupt that is being injected.
    pub interrupt: InterruptEvent,
    /// Non-maskable interrupts.
    pub nmi: NmiEvent,
    /// The vector of the start-up message.
    pub sipi_vector: u32,
    /// `KVM_VCPUEVENT_VALID_*`: which of the fields the kernel filled.
    pub flags: u32,
    /// System management mode.
    pub smi: SmiEvent,
    /// A triple fault is pending.
    pub triple_fault_pending: bool,
}

/// An exception on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExceptionEvent {
    /// It is being injected.
    pub injected: bool,
    /// It waits.
    pub pending: bool,
    /// The vector.
    pub vector: u8,
    /// The error code, if the exception has one.
    pub error_code: Option<u32>,
    /// CR2 or DR6 to be, if it was not written yet.
    pub payload: Option<u64>,
}

/// An interrupt on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptEvent {
    /// It is being injected.
    pub injected: bool,
    /// The vector.
    pub vector: u8,
    /// It comes from an INT instruction.
    pub soft: bool,
    /// `KVM_X86_SHADOW_INT_*`: interrupts are held off for one instruction.
    pub shadow: u8,
}

/// Non-maskable interrupts on their way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NmiEvent {
    /// One is being injected.
    pub injected: bool,
    /// How many wait.
    pub pending: u8,
    /// The guest is in its handler.
    pub masked: bool,
}

/// System management mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmiEvent {
    /// The vCPU is in it.
    pub in_smm: bool,
    /// An interrupt into it waits.
    pub pending: bool,
    /// It was entered while an NMI was handled.
    pub inside_nmi: bool,
    /// An INIT message waits for its end.
    pub latched_init: bool,
}

/// The guest's time stamp counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TscState {
    /// Ticks in a millisecond.
    pub khz: u32,
    /// What it read when the state was taken.
    pub value: u64,
    /// What is added to the host's counter to get the guest's; `None` on
    /// kernels that do not tell (before 5.16). Means something on the same boot
    /// of the same host only.
    pub offset: Option<u64>,
}

/// How the guest's clocks go on from their saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockPolicy {
    /// As if the guest had been running: the time between passed for it, too.
    /// The time stamp counter keeps its offset, so this is for the same boot of
    /// the same host; without an offset it is as `Value`.
    Continue,
    /// From the value that was saved: the time between did not pass for the
    /// guest.
    Value,
}

/// The state of a VM beside its vCPUs and devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    /// The guest's paravirtual clock.
    pub clock: ClockState,
}

/// The paravirtual clock (kvmclock) of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// Nanoseconds that the guest reads.
    pub nanoseconds: u64,
    /// The host's wall clock at that moment, in nanoseconds since 1970; `None`
    /// where the kernel does not tell.
    pub wall_clock: Option<u64>,
}
