//! The difference between two snapshots of the same VM.

use super::{DeviceExits, ExitCounters, ExitSnapshot, ReasonCounters, Totals, VmmSide};

/// Why two snapshots have no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaError {
    /// They are of different boots, or of different VMs.
    NotTheSameBoot,
    /// They count different things.
    NotTheSameKind,
    /// One of them has exits by reason and the other has none.
    Switched,
}

impl std::fmt::Display for DeltaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DeltaError::NotTheSameBoot => {
                "The snapshots are of different boots: the VM was rebooted, or it is another one"
            }
            DeltaError::NotTheSameKind => {
                "The snapshots differ in instruction set, reasons or vCPUs"
            }
            DeltaError::Switched => {
                "Only one of the snapshots has exits by reason: \
                 counting was switched on or off in between"
            }
        })
    }
}

impl std::error::Error for DeltaError {}

impl ExitSnapshot {
    /// What happened between `earlier` and this snapshot, as a snapshot of its
    /// own whose `since` says so and whose `duration_us` says how long it took.
    ///
    /// Snapshots with the same `boot_id` always have one: a counter is read while
    /// the kernel writes it, and may then be seen too high for once, so a counter
    /// that fell did not move. Without boot ids a fall means another boot.
    ///
    /// # Errors
    ///
    /// If the two are not of the same boot or do not count the same things.
    pub fn since(&self, earlier: &ExitSnapshot) -> Result<ExitSnapshot, DeltaError> {
        let minus = match (&self.boot_id, &earlier.boot_id) {
            (Some(later), Some(earlier)) if later != earlier => {
                return Err(DeltaError::NotTheSameBoot);
            }
            (Some(_), Some(_)) => Minus { saturating: true },
            _ => Minus { saturating: false },
        };
        if self.source != earlier.source {
            return Err(DeltaError::Switched);
        }
        if self.isa != earlier.isa || self.vcpus.len() != earlier.vcpus.len() {
            return Err(DeltaError::NotTheSameKind);
        }
        let mut delta = self.clone();
        delta.since = "earlier snapshot".into();
        delta.duration_us = self
            .monotonic_us
            .zip(earlier.monotonic_us)
            .map(|(later, earlier)| later.saturating_sub(earlier));
        delta.totals = minus.totals(&self.totals, &earlier.totals)?;
        minus.reasons(&mut delta.reasons, &earlier.reasons)?;
        delta.latency = match (&self.latency, &earlier.latency) {
            (Some(later), Some(earlier)) => Some(later.since(earlier, self.tsc_khz)?),
            _ => None,
        };
        minus.vmm(&mut delta.vmm, &earlier.vmm)?;
        for (vcpu, old) in delta.vcpus.iter_mut().zip(&earlier.vcpus) {
            if vcpu.id != old.id {
                return Err(DeltaError::NotTheSameKind);
            }
            vcpu.totals = minus.totals(&vcpu.totals, &old.totals)?;
            minus.reasons(&mut vcpu.reasons, &old.reasons)?;
            match (&mut vcpu.vmm, &old.vmm) {
                (Some(later), Some(earlier)) => minus.vmm(later, earlier)?,
                (later, _) => *later = None,
            }
        }
        Ok(delta)
    }
}

/// Subtracts counters.
#[derive(Clone, Copy)]
struct Minus {
    /// What fell did not move; else it is an error.
    saturating: bool,
}

impl Minus {
    fn count(self, later: u64, earlier: u64) -> Result<u64, DeltaError> {
        match later.checked_sub(earlier) {
            Some(difference) => Ok(difference),
            None if self.saturating => Ok(0),
            None => Err(DeltaError::NotTheSameBoot),
        }
    }

    fn totals(self, later: &Totals, earlier: &Totals) -> Result<Totals, DeltaError> {
        let both = |later: Option<u64>, earlier: Option<u64>| {
            later
                .zip(earlier)
                .map(|(later, earlier)| self.count(later, earlier))
                .transpose()
        };
        Ok(Totals {
            exits: self.count(later.exits, earlier.exits)?,
            cycles: both(later.cycles, earlier.cycles)?,
            blocked_cycles: both(later.blocked_cycles, earlier.blocked_cycles)?,
            userspace_cycles: both(later.userspace_cycles, earlier.userspace_cycles)?,
            preempted_cycles: both(later.preempted_cycles, earlier.preempted_cycles)?,
            guest_cycles: both(later.guest_cycles, earlier.guest_cycles)?,
            kvm_exits: both(later.kvm_exits, earlier.kvm_exits)?,
            // A lower bound may fall.
            uncounted_exits: later
                .uncounted_exits
                .saturating_sub(earlier.uncounted_exits),
        })
    }

    /// A reason that the earlier list lacks counts from zero: a snapshot that was
    /// asked for non-zero reasons only leaves the others out.
    fn reasons(
        self,
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
                    exits: self.count(new.exits, old.exits)?,
                    cycles: self.count(new.cycles, old.cycles)?,
                    blocked_cycles: self.count(new.blocked_cycles, old.blocked_cycles)?,
                    userspace_cycles: self.count(new.userspace_cycles, old.userspace_cycles)?,
                    preempted_cycles: self.count(new.preempted_cycles, old.preempted_cycles)?,
                };
            }
        }
        Ok(())
    }

    fn vmm(self, later: &mut VmmSide, earlier: &VmmSide) -> Result<(), DeltaError> {
        let key = |device: &DeviceExits| {
            let DeviceExits {
                id,
                address,
                range,
                size,
                ..
            } = device;
            (id.clone(), address.clone(), range.clone(), *size)
        };
        for row in &mut later.exits {
            let Some(old) = earlier.exits.iter().find(|old| old.kind == row.kind) else {
                continue;
            };
            row.exits = self.count(row.exits, old.exits)?;
            row.nanoseconds = self.count(row.nanoseconds, old.nanoseconds)?;
            let before: std::collections::HashMap<_, _> = old
                .devices
                .iter()
                .map(|device| (key(device), (device.exits, device.nanoseconds)))
                .collect();
            for device in &mut row.devices {
                if let Some((exits, nanoseconds)) = before.get(&key(device)) {
                    device.exits = self.count(device.exits, *exits)?;
                    device.nanoseconds = self.count(device.nanoseconds, *nanoseconds)?;
                }
            }
            row.devices.retain(|device| device.exits > 0);
        }
        later.exits.retain(|row| row.exits > 0);
        Ok(())
    }
}
