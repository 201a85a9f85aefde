//! The difference between two snapshots of the same VM.

use super::{ExitCounters, ExitSnapshot, ReasonCounters, Totals};

/// Why two snapshots have no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaError {
    /// A counter is lower in the later one, which no counter ever is in one
    /// life of a VM.
    NotTheSameBoot,
    /// They count different things.
    NotTheSameKind,
}

impl std::fmt::Display for DeltaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DeltaError::NotTheSameBoot => {
                "The earlier snapshot counts more than the later one: it is from another boot"
            }
            DeltaError::NotTheSameKind => {
                "The snapshots differ in source, instruction set, reasons or vCPUs"
            }
        })
    }
}

impl std::error::Error for DeltaError {}

impl ExitSnapshot {
    /// What happened between `earlier` and this snapshot, as a snapshot of its
    /// own whose `since` says so.
    pub fn since(&self, earlier: &ExitSnapshot) -> Result<ExitSnapshot, DeltaError> {
        let same = self.source == earlier.source
            && self.isa == earlier.isa
            && self.vcpus.len() == earlier.vcpus.len();
        if !same {
            return Err(DeltaError::NotTheSameKind);
        }
        let mut delta = self.clone();
        delta.since = "earlier snapshot".into();
        delta.totals = totals(&self.totals, &earlier.totals)?;
        reasons(&mut delta.reasons, &earlier.reasons)?;
        for (vcpu, old) in delta.vcpus.iter_mut().zip(&earlier.vcpus) {
            if vcpu.id != old.id {
                return Err(DeltaError::NotTheSameKind);
            }
            vcpu.totals = totals(&vcpu.totals, &old.totals)?;
            reasons(&mut vcpu.reasons, &old.reasons)?;
        }
        for row in &mut delta.vmm.exits {
            let Some(old) = earlier.vmm.exits.iter().find(|old| old.kind == row.kind) else {
                continue;
            };
            row.exits = minus(row.exits, old.exits)?;
            row.nanoseconds = minus(row.nanoseconds, old.nanoseconds)?;
            for device in &mut row.devices {
                let old = old.devices.iter().find(|old| {
                    (&old.id, &old.address, &old.range, old.size)
                        == (&device.id, &device.address, &device.range, device.size)
                });
                if let Some(old) = old {
                    device.exits = minus(device.exits, old.exits)?;
                    device.nanoseconds = minus(device.nanoseconds, old.nanoseconds)?;
                }
            }
            row.devices.retain(|device| device.exits > 0);
        }
        delta.vmm.exits.retain(|row| row.exits > 0);
        Ok(delta)
    }
}

fn minus(later: u64, earlier: u64) -> Result<u64, DeltaError> {
    later.checked_sub(earlier).ok_or(DeltaError::NotTheSameBoot)
}

fn totals(later: &Totals, earlier: &Totals) -> Result<Totals, DeltaError> {
    let both = |later: Option<u64>, earlier: Option<u64>| {
        later
            .zip(earlier)
            .map(|(later, earlier)| minus(later, earlier))
            .transpose()
    };
    Ok(Totals {
        exits: minus(later.exits, earlier.exits)?,
        cycles: both(later.cycles, earlier.cycles)?,
        blocked_cycles: both(later.blocked_cycles, earlier.blocked_cycles)?,
        userspace_cycles: both(later.userspace_cycles, earlier.userspace_cycles)?,
        preempted_cycles: both(later.preempted_cycles, earlier.preempted_cycles)?,
        guest_cycles: both(later.guest_cycles, earlier.guest_cycles)?,
    })
}

/// A reason that the earlier list lacks counts from zero: a snapshot that was
/// asked for non-zero reasons only leaves the others out.
fn reasons(
    later: &mut Option<Vec<ReasonCounters>>,
    earlier: &Option<Vec<ReasonCounters>>,
) -> Result<(), DeltaError> {
    let (Some(later), Some(earlier)) = (later, earlier) else {
        return Ok(());
    };
    if earlier
        .iter()
        .any(|old| !old.counters.is_zero() && !later.iter().any(|row| row.number == old.number))
    {
        return Err(DeltaError::NotTheSameKind);
    }
    for row in later {
        if let Some(old) = earlier.iter().find(|old| old.number == row.number) {
            let (new, old) = (row.counters, old.counters);
            row.counters = ExitCounters {
                exits: minus(new.exits, old.exits)?,
                cycles: minus(new.cycles, old.cycles)?,
                blocked_cycles: minus(new.blocked_cycles, old.blocked_cycles)?,
                userspace_cycles: minus(new.userspace_cycles, old.userspace_cycles)?,
                preempted_cycles: minus(new.preempted_cycles, old.preempted_cycles)?,
            };
        }
    }
    Ok(())
}
