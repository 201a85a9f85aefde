//! The VMM's own side of the accounting: exits that reach user space, by kind
//! and by the device register and access width behind them.
//!
//! A vCPU thread owns one [`UserExitRecorder`] and is its only writer; readers
//! take no lock and may look at any time. Counters only grow, so a reader that
//! wants a rate subtracts two readings.

mod ranges;
mod recorder;
mod state;

pub use ranges::{Access, AddressSpace, RangeId, RangeInfo, RangeMap};
pub use recorder::{AccessKey, UserExitCount, UserExitRecorder};
pub use state::{CountState, RangeState, RecorderStateError};

use serde::{Deserialize, Serialize};

use crate::table::{ExitReason, Isa};

/// Why `KVM_RUN` returned to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserExitKind {
    /// Port read.
    IoIn,
    /// Port write.
    IoOut,
    /// Read of memory-mapped I/O.
    MmioRead,
    /// Write of memory-mapped I/O.
    MmioWrite,
    /// HLT, where the interrupt controller is not in the kernel.
    Hlt,
    /// Triple fault.
    Shutdown,
    /// `KVM_EXIT_SYSTEM_EVENT`.
    SystemEvent,
    /// The VM entry failed.
    FailEntry,
    /// KVM gave up, for instance on an instruction that it cannot emulate.
    InternalError,
    /// End of interrupt that a user-space I/O APIC has to hear of.
    IoapicEoi,
    /// No exit of the guest's: a signal took the thread out of `KVM_RUN`.
    Interrupted,
    /// Anything else.
    Other,
}

impl UserExitKind {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [UserExitKind; 12] = [
        UserExitKind::IoIn,
        UserExitKind::IoOut,
        UserExitKind::MmioRead,
        UserExitKind::MmioWrite,
        UserExitKind::Hlt,
        UserExitKind::Shutdown,
        UserExitKind::SystemEvent,
        UserExitKind::FailEntry,
        UserExitKind::InternalError,
        UserExitKind::IoapicEoi,
        UserExitKind::Interrupted,
        UserExitKind::Other,
    ];

    /// The name in the REST body.
    pub fn as_str(self) -> &'static str {
        match self {
            UserExitKind::IoIn => "io_in",
            UserExitKind::IoOut => "io_out",
            UserExitKind::MmioRead => "mmio_read",
            UserExitKind::MmioWrite => "mmio_write",
            UserExitKind::Hlt => "hlt",
            UserExitKind::Shutdown => "shutdown",
            UserExitKind::SystemEvent => "system_event",
            UserExitKind::FailEntry => "fail_entry",
            UserExitKind::InternalError => "internal_error",
            UserExitKind::IoapicEoi => "ioapic_eoi",
            UserExitKind::Interrupted => "interrupted",
            UserExitKind::Other => "other",
        }
    }

    /// The kinds in which exits of a reason reach user space: ports by the I/O
    /// instruction's, memory-mapped I/O by faults in the nested tables.
    pub fn behind(isa: Isa, reason: ExitReason) -> &'static [UserExitKind] {
        match (isa, reason.0) {
            (Isa::Vmx, 30) | (Isa::Svm, 0x7b) => &[UserExitKind::IoIn, UserExitKind::IoOut],
            (Isa::Vmx, 48 | 49) | (Isa::Svm, 0x400) => {
                &[UserExitKind::MmioRead, UserExitKind::MmioWrite]
            }
            _ => &[],
        }
    }

    /// Whether a device range and a size belong to it.
    pub fn is_access(self) -> bool {
        (self as usize) < ACCESS_KINDS
    }
}

/// The first four kinds are accesses to a device.
const ACCESS_KINDS: usize = 4;

#[cfg(test)]
mod tests;
