//! One reading of a VM's exit figures, in the shape of the REST body.
//!
//! A snapshot is built from a [`VcpuSample`] a vCPU (what the kernel says) and
//! the rows of its recorder (what the VMM saw). Totals are always the sum of
//! the rows they stand above, so nothing in a snapshot can contradict itself.

mod build;
mod delta;
mod latency;
mod query;

pub use build::{Host, VcpuInput};
pub use delta::DeltaError;
pub use latency::{Latency, LatencyBucket, ReasonLatency};
pub use query::{Query, QueryError};

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::table::Isa;
use crate::user_exit::UserExitKind;

/// What one read of a vCPU's statistics file gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuSample {
    /// KVM's own count of exits, which any KVM has.
    pub exits: u64,
    /// TSC ticks that the vCPU spent running guest code.
    pub guest_cycles: Option<u64>,
    /// The arrays of a KVM that counts by reason.
    pub arrays: Option<ReasonArrays>,
}

impl VcpuSample {
    /// Whether a counter is lower than it was in `earlier`.
    pub fn is_below(&self, earlier: &VcpuSample) -> bool {
        let below = |later: &[u64], earlier: &[u64]| {
            later
                .iter()
                .zip(earlier)
                .any(|(later, earlier)| later < earlier)
        };
        let arrays = match (&self.arrays, &earlier.arrays) {
            (Some(later), Some(earlier)) => {
                below(&later.exits, &earlier.exits)
                    || below(&later.cycles, &earlier.cycles)
                    || below(&later.blocked_cycles, &earlier.blocked_cycles)
                    || below(&later.userspace_cycles, &earlier.userspace_cycles)
                    || below(&later.preempted_cycles, &earlier.preempted_cycles)
            }
            _ => false,
        };
        arrays || self.exits < earlier.exits || self.guest_cycles < earlier.guest_cycles
    }
}

/// The kernel's per-vCPU arrays, indexed by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonArrays {
    /// Exits.
    pub exits: Vec<u64>,
    /// TSC ticks in the kernel.
    pub cycles: Vec<u64>,
    /// TSC ticks asleep in the kernel.
    pub blocked_cycles: Vec<u64>,
    /// TSC ticks out in user space.
    pub userspace_cycles: Vec<u64>,
    /// TSC ticks without a CPU, which another task had; empty where the kernel's
    /// interface is version 1, which books them as ticks in the kernel.
    pub preempted_cycles: Vec<u64>,
}

/// Where the figures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A KVM that counts exits by reason.
    #[serde(rename = "kvm-exit-stats")]
    ExitStats,
    /// Any other KVM: only its total is known.
    #[serde(rename = "kvm")]
    Kvm,
}

/// The figures of a VM, or of the one vCPU that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitSnapshot {
    /// Where the figures come from.
    pub source: Source,
    /// Why there are no figures by reason, where there are none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unavailable: Option<String>,
    /// Whose exit reasons these are.
    pub isa: Option<Isa>,
    /// The manual that names and numbers follow.
    pub manual: Option<String>,
    /// TSC ticks per millisecond.
    pub tsc_khz: u32,
    /// From when on the figures count.
    pub since: String,
    /// Which life of which VM this is: no two boots have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// When the counters were read: microseconds since 1970, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix_us: Option<u64>,
    /// When the counters were read: microseconds of the host's monotonic clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monotonic_us: Option<u64>,
    /// In a difference, the microseconds that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// The VM has ended: these are its last counters.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// The sum over all reasons.
    pub totals: Totals,
    /// Every reason that the manual defines, by number.
    pub reasons: Option<Vec<ReasonCounters>>,
    /// The same for each vCPU.
    pub vcpus: Vec<VcpuSnapshot>,
    /// How long exits took, if the VM has histograms on and the VMM may read them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// What the VMM saw of the exits that came to it.
    pub vmm: VmmSide,
}

/// Sums over all reasons. Fields that the running KVM cannot tell are null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Exits.
    pub exits: u64,
    /// TSC ticks in the kernel.
    pub cycles: Option<u64>,
    /// TSC ticks asleep in the kernel.
    pub blocked_cycles: Option<u64>,
    /// TSC ticks out in user space.
    pub userspace_cycles: Option<u64>,
    /// TSC ticks without a CPU, which another task had.
    #[serde(default)]
    pub preempted_cycles: Option<u64>,
    /// TSC ticks running guest code.
    pub guest_cycles: Option<u64>,
    /// Exits by KVM's own counter, which counts also while the accounting by
    /// reason is off. While a vCPU runs it may lag behind `exits`, since the two
    /// are not read at one moment.
    #[serde(default)]
    pub kvm_exits: Option<u64>,
    /// Exits that KVM counted and the accounting by reason did not, because it
    /// was off: at least so many.
    #[serde(default)]
    pub uncounted_exits: u64,
}

/// The figures of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCounters {
    /// The manual's number; null for exits that it has no number for.
    pub number: Option<u32>,
    /// The manual's name.
    pub name: Cow<'static, str>,
    /// Linux's symbol.
    pub symbol: Cow<'static, str>,
    /// Whether KVM has a handler for it.
    pub enabled: bool,
    /// How often it happened.
    #[serde(flatten)]
    pub counters: ExitCounters,
}

impl ReasonCounters {
    /// The number as the manual of `isa` writes it; a dash where there is none.
    pub fn label(&self, isa: Option<Isa>) -> String {
        isa.zip(self.number)
            .map_or("-".into(), |(isa, number)| isa.number(number))
    }
}

/// Count and time of exits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCounters {
    /// Exits.
    pub exits: u64,
    /// TSC ticks in the kernel.
    pub cycles: u64,
    /// TSC ticks asleep in the kernel.
    pub blocked_cycles: u64,
    /// TSC ticks out in user space.
    pub userspace_cycles: u64,
    /// TSC ticks without a CPU, which another task had.
    #[serde(default)]
    pub preempted_cycles: u64,
}

impl ExitCounters {
    /// Adds another row to this one.
    pub fn add(&mut self, other: &ExitCounters) {
        self.exits = self.exits.wrapping_add(other.exits);
        self.cycles = self.cycles.wrapping_add(other.cycles);
        self.blocked_cycles = self.blocked_cycles.wrapping_add(other.blocked_cycles);
        self.userspace_cycles = self.userspace_cycles.wrapping_add(other.userspace_cycles);
        self.preempted_cycles = self.preempted_cycles.wrapping_add(other.preempted_cycles);
    }

    /// Whether nothing was counted.
    pub fn is_zero(&self) -> bool {
        *self == ExitCounters::default()
    }
}

/// The figures of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuSnapshot {
    /// The vCPU's number.
    pub id: u32,
    /// The sum over its reasons.
    pub totals: Totals,
    /// Its reasons, in the same order as the VM's.
    pub reasons: Option<Vec<ReasonCounters>>,
    /// What the VMM saw of its exits; null from a VMM that does not tell them
    /// apart by vCPU.
    #[serde(default)]
    pub vmm: Option<VmmSide>,
}

/// Exits that reached user space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmSide {
    /// By kind; kinds that never happened are left out.
    pub exits: Vec<UserExits>,
}

/// Exits of one kind that reached user space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserExits {
    /// Why `KVM_RUN` returned.
    pub kind: UserExitKind,
    /// How often.
    pub exits: u64,
    /// Time that user space took.
    pub nanoseconds: u64,
    /// The accesses behind them, where the kind is one; most exits first.
    pub devices: Vec<DeviceExits>,
}

/// Accesses of one width to one register of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceExits {
    /// The device's id, `unassigned` where no device answers.
    pub id: String,
    /// Address of the register, as `0x…`, or of the page for ranges longer than
    /// one; null for all further registers of the range together.
    pub address: Option<String>,
    /// First address of the device's range, as `0x…`; null where there is none.
    #[serde(default)]
    pub range: Option<String>,
    /// Width of the access in bytes.
    pub size: u8,
    /// How often.
    pub exits: u64,
    /// Time that user space took.
    pub nanoseconds: u64,
}

#[cfg(test)]
mod tests;
