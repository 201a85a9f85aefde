//! From samples to a snapshot.

use super::{
    DeviceExits, ExitCounters, ExitSnapshot, ReasonArrays, ReasonCounters, Source, Totals,
    UserExits, VcpuSample, VcpuSnapshot, VmmSide,
};
use crate::table::{ExitTable, Isa};
use crate::user_exit::{RangeInfo, UserExitCount, UserExitKind};

/// What a snapshot says about the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Whose exits KVM counts by reason; `Err` says why it does not.
    pub isa: Result<Isa, String>,
    /// TSC ticks per millisecond.
    pub tsc_khz: u32,
}

/// What is known of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuInput {
    /// Its number.
    pub id: u32,
    /// What the kernel says.
    pub sample: VcpuSample,
    /// What its thread recorded.
    pub user_exits: Vec<UserExitCount>,
}

impl ExitSnapshot {
    /// Builds the snapshot of a VM. A VM has figures by reason only if every
    /// one of its vCPUs has.
    pub fn from_samples(host: &Host, ranges: &[RangeInfo], inputs: &[VcpuInput]) -> ExitSnapshot {
        let all_counted = inputs.iter().all(|input| input.sample.arrays.is_some());
        let (isa, unavailable) = match &host.isa {
            Ok(isa) if all_counted => (Some(*isa), None),
            Ok(_) => (None, Some("KVM offers no counters by exit reason".into())),
            Err(why) => (None, Some(why.clone())),
        };
        let table = isa.map(Isa::table);
        let vcpus: Vec<VcpuSnapshot> = inputs
            .iter()
            .map(|input| VcpuSnapshot {
                vmm: Some(vmm_side(host.tsc_khz, ranges, std::slice::from_ref(input))),
                ..vcpu_snapshot(table, input)
            })
            .collect();
        ExitSnapshot {
            source: if isa.is_some() {
                Source::ExitStats
            } else {
                Source::Kvm
            },
            unavailable,
            isa,
            manual: table.map(|table| table.manual.into()),
            tsc_khz: host.tsc_khz,
            since: "boot".into(),
            boot_id: None,
            unix_us: None,
            monotonic_us: None,
            duration_us: None,
            ended: false,
            totals: sum_totals(&vcpus),
            reasons: table.map(|table| sum_reasons(table, &vcpus)),
            vcpus,
            latency: None,
            vmm: vmm_side(host.tsc_khz, ranges, inputs),
        }
    }
}

fn vcpu_snapshot(table: Option<&'static ExitTable>, input: &VcpuInput) -> VcpuSnapshot {
    let sample = &input.sample;
    let reasons = table
        .zip(sample.arrays.as_ref())
        .map(|(table, arrays)| reasons_of(table, arrays));
    let totals = match &reasons {
        Some(reasons) => {
            let mut sum = ExitCounters::default();
            for reason in reasons {
                sum.add(&reason.counters);
            }
            Totals {
                exits: sum.exits,
                cycles: Some(sum.cycles),
                blocked_cycles: Some(sum.blocked_cycles),
                userspace_cycles: Some(sum.userspace_cycles),
                preempted_cycles: sample
                    .arrays
                    .as_ref()
                    .filter(|arrays| !arrays.preempted_cycles.is_empty())
                    .map(|_| sum.preempted_cycles),
                guest_cycles: sample.guest_cycles,
                kvm_exits: Some(sample.exits),
                // KVM's counter stands before the arrays in the file and is
                // incremented after them, so what it is ahead by was not counted.
                uncounted_exits: sample.exits.saturating_sub(sum.exits),
            }
        }
        None => Totals {
            exits: sample.exits,
            kvm_exits: Some(sample.exits),
            ..Totals::default()
        },
    };
    VcpuSnapshot {
        id: input.id,
        totals,
        reasons,
        vmm: None,
    }
}

/// The defined reasons by number. Whatever no defined reason stands for comes
/// last, and only if it happened: then it must not be missing from the sum.
fn reasons_of(table: &'static ExitTable, arrays: &ReasonArrays) -> Vec<ReasonCounters> {
    let at = |slot: usize| {
        let value = |array: &[u64]| array.get(slot).copied().unwrap_or(0);
        ExitCounters {
            exits: value(&arrays.exits),
            cycles: value(&arrays.cycles),
            blocked_cycles: value(&arrays.blocked_cycles),
            userspace_cycles: value(&arrays.userspace_cycles),
            preempted_cycles: value(&arrays.preempted_cycles),
        }
    };
    let mut reasons = Vec::with_capacity(table.reasons.len() + 1);
    let mut other = ExitCounters::default();
    let known = table.by_slot();
    for slot in 0..arrays.exits.len() {
        let counters = at(slot);
        match known.get(slot).copied().flatten() {
            Some(entry) => reasons.push(ReasonCounters {
                number: Some(entry.number),
                name: entry.name.into(),
                symbol: entry.symbol.into(),
                enabled: entry.enabled,
                counters,
            }),
            None => other.add(&counters),
        }
    }
    if !other.is_zero() {
        reasons.push(ReasonCounters {
            number: None,
            name: "Failed VM entry or unknown code".into(),
            symbol: "OTHER".into(),
            enabled: false,
            counters: other,
        });
    }
    reasons
}

fn sum_totals(vcpus: &[VcpuSnapshot]) -> Totals {
    let sum = |field: fn(&Totals) -> Option<u64>| {
        vcpus
            .iter()
            .map(|vcpu| field(&vcpu.totals))
            .try_fold(0u64, |sum, value| {
                value.map(|value| sum.wrapping_add(value))
            })
    };
    Totals {
        exits: vcpus.iter().map(|vcpu| vcpu.totals.exits).sum(),
        cycles: sum(|totals| totals.cycles),
        blocked_cycles: sum(|totals| totals.blocked_cycles),
        userspace_cycles: sum(|totals| totals.userspace_cycles),
        preempted_cycles: sum(|totals| totals.preempted_cycles),
        guest_cycles: sum(|totals| totals.guest_cycles),
        kvm_exits: sum(|totals| totals.kvm_exits),
        uncounted_exits: vcpus.iter().map(|vcpu| vcpu.totals.uncounted_exits).sum(),
    }
}

fn sum_reasons(table: &'static ExitTable, vcpus: &[VcpuSnapshot]) -> Vec<ReasonCounters> {
    let mut sums = reasons_of(
        table,
        &ReasonArrays {
            exits: vec![0; table.slot_count()],
            ..ReasonArrays::default()
        },
    );
    for reasons in vcpus.iter().filter_map(|vcpu| vcpu.reasons.as_ref()) {
        // All lists begin with the defined reasons. The one that may follow is
        // last in each.
        for (place, reason) in reasons.iter().enumerate() {
            match sums.get_mut(place) {
                Some(sum) => sum.counters.add(&reason.counters),
                None => sums.push(reason.clone()),
            }
        }
    }
    sums
}

fn vmm_side(tsc_khz: u32, ranges: &[RangeInfo], inputs: &[VcpuInput]) -> VmmSide {
    let mut exits = Vec::new();
    for kind in UserExitKind::ALL {
        let rows = || {
            inputs
                .iter()
                .flat_map(|input| &input.user_exits)
                .filter(move |row| row.kind == kind)
        };
        let mut by_access = std::collections::BTreeMap::new();
        for row in rows() {
            if let Some(access) = row.access {
                let (exits, ticks) = by_access.entry(access).or_insert((0u64, 0u64));
                *exits += row.exits;
                *ticks = ticks.wrapping_add(row.ticks);
            }
        }
        let mut devices: Vec<DeviceExits> = by_access
            .into_iter()
            .map(|(access, (exits, ticks))| {
                let range = ranges.get(access.range);
                let base = range.and_then(|range| range.base);
                let address = access
                    .register
                    .map(|register| base.unwrap_or(0).wrapping_add(register));
                DeviceExits {
                    id: range.map_or("unassigned", |range| &range.device).into(),
                    address: address.map(|address| format!("{address:#x}")),
                    range: base.map(|base| format!("{base:#x}")),
                    size: access.size,
                    exits,
                    nanoseconds: nanoseconds(ticks, tsc_khz),
                }
            })
            .collect();
        devices.sort_by_key(|device| std::cmp::Reverse(device.exits));
        let count: u64 = rows().map(|row| row.exits).sum();
        if count > 0 {
            exits.push(UserExits {
                kind,
                exits: count,
                nanoseconds: nanoseconds(
                    rows().fold(0, |sum, row| sum.wrapping_add(row.ticks)),
                    tsc_khz,
                ),
                devices,
            });
        }
    }
    VmmSide { exits }
}

/// TSC ticks as nanoseconds; zero where the rate is not known.
pub(crate) fn nanoseconds(ticks: u64, tsc_khz: u32) -> u64 {
    match tsc_khz {
        0 => 0,
        khz => (u128::from(ticks) * 1_000_000 / u128::from(khz)) as u64,
    }
}
