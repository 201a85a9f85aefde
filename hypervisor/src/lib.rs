//! What the VMM needs of a hypervisor, as three narrow traits, and their KVM
//! implementation; the reader of KVM's binary statistics; the host's time
//! stamp counter.
//!
//! The unsafe code that talks to the kernel lives here, so that the VMM's own
//! modules can forbid it.

mod internal_error;
pub mod kvm;
mod stats_fd;
mod traits;
pub mod x86;

pub use internal_error::InternalError;
pub use kvm::ExitStatsSupport;
pub use kvm::kick::VcpuKick;
pub use stats_fd::{StatsError, StatsFd};
pub use traits::{
    Error, ExitStatsFeatures, Hypervisor, IrqRoute, Result, Vcpu, VcpuSetup, Vm, VmExit, VmOps,
};

/// Reads the host's time stamp counter, the clock of every "ticks" in this
/// workspace.
#[must_use]
pub fn rdtsc() -> u64 {
    // SAFETY:
    // - RDTSC has no memory operands and changes no state but its outputs.
    // - Every x86-64 processor has it; CR4.TSD is clear under Linux unless a
    //   process asks for PR_TSC_SIGSEGV, which nothing here does.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::rdtsc;

    #[test]
    fn time_stamps_never_run_backwards_on_one_thread() {
        let first = rdtsc();
        assert!(rdtsc() >= first);
    }
}
