use super::*;
use crate::table::{ExitReason, STATS_SLOTS};
use crate::user_exit::{Access, AddressSpace, RangeMap, UserExitRecorder};

fn host() -> Host {
    Host {
        isa: Ok(Isa::Vmx),
        tsc_khz: 2_000_000,
    }
}

fn sample(rows: &[(usize, u64)]) -> VcpuSample {
    let mut arrays = ReasonArrays {
        exits: vec![0; STATS_SLOTS],
        cycles: vec![0; STATS_SLOTS],
        blocked_cycles: vec![0; STATS_SLOTS],
        userspace_cycles: vec![0; STATS_SLOTS],
        preempted_cycles: vec![0; STATS_SLOTS],
    };
    let mut exits = 0;
    for &(slot, count) in rows {
        arrays.exits[slot] = count;
        arrays.cycles[slot] = count * 100;
        arrays.blocked_cycles[slot] = count * 10;
        arrays.userspace_cycles[slot] = count;
        arrays.preempted_cycles[slot] = count * 3;
        exits += count;
    }
    VcpuSample {
        exits,
        guest_cycles: Some(5),
        arrays: Some(arrays),
    }
}

fn input(id: u32, rows: &[(usize, u64)]) -> VcpuInput {
    VcpuInput {
        id,
        sample: sample(rows),
        user_exits: Vec::new(),
    }
}

fn snapshot(rows: &[(usize, u64)]) -> ExitSnapshot {
    ExitSnapshot::from_samples(&host(), &[], &[input(0, rows)])
}

fn find(snapshot: &ExitSnapshot, number: u32) -> ReasonCounters {
    let reasons = snapshot.reasons.as_ref().unwrap();
    reasons
        .iter()
        .find(|row| row.number == Some(number))
        .unwrap()
        .clone()
}

#[test]
fn a_vm_is_the_sum_of_its_vcpus() {
    let snapshot = ExitSnapshot::from_samples(
        &host(),
        &[],
        &[input(0, &[(10, 3), (48, 1)]), input(1, &[(10, 4)])],
    );
    assert_eq!(find(&snapshot, 10).counters.exits, 7);
    assert_eq!(find(&snapshot, 48).counters.cycles, 100);
    assert_eq!(find(&snapshot, 1).counters, ExitCounters::default());
    assert_eq!(
        snapshot.totals,
        Totals {
            exits: 8,
            cycles: Some(800),
            blocked_cycles: Some(80),
            userspace_cycles: Some(8),
            preempted_cycles: Some(24),
            guest_cycles: Some(10),
            kvm_exits: Some(8),
            uncounted_exits: 0,
        }
    );
    assert_eq!(snapshot.vcpus[1].totals.exits, 4);
}

#[test]
fn a_kernel_that_does_not_tell_preempted_time_apart_says_nothing_of_it() {
    let mut old = input(0, &[(10, 3)]);
    if let Some(arrays) = &mut old.sample.arrays {
        arrays.preempted_cycles.clear();
    }
    let snapshot = ExitSnapshot::from_samples(&host(), &[], &[old, input(1, &[(10, 1)])]);
    assert_eq!(snapshot.vcpus[0].totals.preempted_cycles, None);
    assert_eq!(snapshot.totals.preempted_cycles, None);
    assert_eq!(snapshot.totals.userspace_cycles, Some(4));
}

#[test]
fn exits_without_a_number_are_not_lost_from_the_sum() {
    let snapshot = snapshot(&[(10, 2), (86, 1), (33, 5)]);
    let reasons = snapshot.reasons.as_ref().unwrap();
    let other = reasons.last().unwrap();
    assert_eq!((other.number, other.counters.exits), (None, 1));
    assert_eq!(reasons.iter().map(|row| row.counters.exits).sum::<u64>(), 8);
    assert_eq!(snapshot.totals.exits, 8);
    assert!(!find(&snapshot, 33).enabled);
}

#[test]
fn an_unpatched_host_says_why_and_gives_kvms_own_total() {
    let host = Host {
        isa: Err("KVM is not patched".into()),
        tsc_khz: 1,
    };
    let input = VcpuInput {
        id: 0,
        sample: VcpuSample {
            exits: 42,
            guest_cycles: None,
            arrays: None,
        },
        user_exits: Vec::new(),
    };
    let snapshot = ExitSnapshot::from_samples(&host, &[], &[input]);
    assert_eq!(snapshot.unavailable.as_deref(), Some("KVM is not patched"));
    let json: serde_json::Value = serde_json::to_value(&snapshot).unwrap();
    assert_eq!(json["source"], "kvm");
    assert_eq!(json["totals"]["exits"], 42);
    assert_eq!(json["totals"]["kvm_exits"], 42);
    assert!(json["totals"]["cycles"].is_null());
    assert!(json["reasons"].is_null());
    assert!(json["vcpus"][0]["reasons"].is_null());
}

#[test]
fn the_body_survives_a_round_trip() {
    let snapshot = snapshot(&[(10, 2), (86, 1)]);
    let text = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(
        serde_json::from_str::<ExitSnapshot>(&text).unwrap(),
        snapshot
    );
}

#[test]
fn a_query_keeps_one_reason_and_judges_it_as_the_table_does() {
    let snapshot = snapshot(&[(10, 2), (48, 1)]);
    let ask = |number| {
        snapshot.clone().narrow(&Query {
            reason: Some(ExitReason(number)),
            ..Query::default()
        })
    };
    let enabled = ask(48).unwrap();
    assert_eq!(enabled.reasons.as_ref().unwrap().len(), 1);
    assert_eq!(enabled.vcpus[0].reasons.as_ref().unwrap().len(), 1);
    assert_eq!(enabled.totals.exits, 3);
    let not_enabled = find(&ask(11).unwrap(), 11);
    assert!(!not_enabled.enabled && not_enabled.counters.is_zero());
    assert!(matches!(
        ask(0x1000A),
        Err(QueryError::UndefinedReason { .. })
    ));
}

#[test]
fn a_query_for_a_vcpu_makes_the_figures_its_own() {
    let snapshot =
        ExitSnapshot::from_samples(&host(), &[], &[input(0, &[(10, 3)]), input(1, &[(12, 4)])]);
    let ask = |vcpu| {
        snapshot.clone().narrow(&Query {
            vcpu: Some(vcpu),
            nonzero: true,
            ..Query::default()
        })
    };
    let one = ask(1).unwrap();
    assert_eq!(one.totals.exits, 4);
    assert_eq!(one.reasons.as_ref().unwrap().len(), 1);
    assert_eq!(one.vcpus.len(), 1);
    assert_eq!(ask(2), Err(QueryError::NoSuchVcpu { vcpu: 2, vcpus: 2 }));
}

#[test]
fn a_difference_holds_what_happened_in_between() {
    let earlier = snapshot(&[(10, 2), (48, 1)]);
    let later = snapshot(&[(10, 5), (48, 1)]);
    let delta = later.since(&earlier).unwrap();
    assert_eq!(find(&delta, 10).counters.exits, 3);
    assert!(find(&delta, 48).counters.is_zero());
    assert_eq!(delta.totals.exits, 3);
    assert_eq!(earlier.since(&later), Err(DeltaError::NotTheSameBoot));
}

#[test]
fn boot_ids_tell_boots_apart_and_falls_do_not() {
    let of = |boot_id: &str, monotonic_us, rows: &[(usize, u64)]| ExitSnapshot {
        boot_id: Some(boot_id.into()),
        monotonic_us: Some(monotonic_us),
        ..snapshot(rows)
    };
    let earlier = of("a", 1_000, &[(10, 300), (48, 1)]);
    // Another VMM on the same socket, whose counters are all higher.
    let other = of("b", 9_000, &[(10, 500), (48, 2)]);
    assert_eq!(other.since(&earlier), Err(DeltaError::NotTheSameBoot));
    // One counter was seen half written.
    let later = of("a", 4_500, &[(10, 299), (48, 5)]);
    let delta = later.since(&earlier).unwrap();
    assert!(find(&delta, 10).counters.is_zero());
    assert_eq!(find(&delta, 48).counters.exits, 4);
    assert_eq!(delta.duration_us, Some(3_500));
}

#[test]
fn exits_while_counting_was_off_are_told() {
    let mut sample = sample(&[(10, 5)]);
    sample.exits = 105;
    let input = VcpuInput {
        id: 0,
        sample,
        user_exits: Vec::new(),
    };
    let gap = ExitSnapshot::from_samples(&host(), &[], &[input]);
    assert_eq!((gap.totals.exits, gap.totals.uncounted_exits), (5, 100));
    let delta = gap.since(&snapshot(&[(10, 1)])).unwrap();
    assert_eq!((delta.totals.exits, delta.totals.uncounted_exits), (4, 100));
    // A vCPU that runs on between the two readings leaves no gap.
    let mut behind = snapshot(&[(10, 5)]);
    behind.totals.kvm_exits = Some(3);
    assert_eq!(behind.totals.uncounted_exits, 0);
}

#[test]
fn a_difference_over_a_switch_is_refused_as_such() {
    let on = snapshot(&[(10, 2)]);
    let off = Host {
        isa: Err("off".into()),
        ..host()
    };
    let off = ExitSnapshot::from_samples(&off, &[], &[input(0, &[(10, 2)])]);
    assert_eq!(off.since(&on), Err(DeltaError::Switched));
    assert_eq!(on.since(&off), Err(DeltaError::Switched));
}

#[test]
fn a_vcpu_has_its_own_devices() {
    let ranges = RangeMap::new();
    let serial = ranges.register("serial", 0x3f8, 8, AddressSpace::Port);
    let disk = ranges.register("disk", 0x1000, 8, AddressSpace::Mmio);
    let of = |id, kind, range| {
        let recorder = UserExitRecorder::new();
        recorder.record(kind, range, 1, 2_000);
        VcpuInput {
            user_exits: recorder.read(),
            ..input(id, &[(10, 1)])
        }
    };
    let whole = ExitSnapshot::from_samples(
        &host(),
        &ranges.ranges(),
        &[
            of(0, UserExitKind::IoOut, serial),
            of(1, UserExitKind::MmioRead, disk),
        ],
    );
    assert_eq!(whole.vmm.exits.len(), 2);
    for (id, name) in [(0, "serial"), (1, "disk")] {
        let query = Query {
            vcpu: Some(id),
            ..Query::default()
        };
        for snapshot in [whole.clone(), whole.since(&snapshot_of_two()).unwrap()] {
            let own = snapshot.narrow(&query).unwrap();
            let [row] = &own.vmm.exits[..] else {
                panic!("{:?}", own.vmm)
            };
            assert_eq!((row.devices.len(), &*row.devices[0].id), (1, name));
        }
    }
}

/// Two vCPUs that have done nothing yet.
fn snapshot_of_two() -> ExitSnapshot {
    ExitSnapshot::from_samples(&host(), &[], &[input(0, &[]), input(1, &[])])
}

#[test]
fn a_difference_of_different_things_is_refused() {
    let one = snapshot(&[(10, 2)]);
    let two = ExitSnapshot::from_samples(&host(), &[], &[input(0, &[(10, 3)]), input(1, &[])]);
    assert_eq!(two.since(&one), Err(DeltaError::NotTheSameKind));
    let mut narrowed = two.clone();
    narrowed.reasons = Some(Vec::new());
    assert_eq!(narrowed.since(&two), Err(DeltaError::NotTheSameKind));
}

#[test]
fn user_exits_are_opened_into_the_devices_behind_them() {
    let ranges = RangeMap::new();
    let serial = ranges.register("serial", 0x3f8, 8, AddressSpace::Port);
    let recorder = UserExitRecorder::new();
    for _ in 0..3 {
        recorder.record(UserExitKind::IoOut, serial, 1, 2_000);
    }
    let address = Access {
        register: 0xcf8,
        ..Access::default()
    };
    recorder.record(UserExitKind::IoOut, address, 4, 1_000);
    recorder.record(UserExitKind::Shutdown, serial, 1, 500);
    let mut input = input(0, &[]);
    input.user_exits = recorder.read();
    let snapshot = ExitSnapshot::from_samples(&host(), &ranges.ranges(), &[input]);
    let [out, shutdown] = &snapshot.vmm.exits[..] else {
        panic!("{:?}", snapshot.vmm)
    };
    assert_eq!((out.exits, out.nanoseconds), (4, 3_500));
    let [first, second] = &out.devices[..] else {
        panic!("{out:?}")
    };
    assert_eq!(
        (&*first.id, first.address.as_deref()),
        ("serial", Some("0x3f8"))
    );
    assert_eq!((first.size, first.exits, first.nanoseconds), (1, 3, 3_000));
    assert_eq!(
        (&*second.id, second.address.as_deref(), second.size),
        ("unassigned", Some("0xcf8"), 4)
    );
    assert_eq!(
        (first.range.as_deref(), second.range.as_deref()),
        (Some("0x3f8"), None)
    );
    assert_eq!((shutdown.exits, shutdown.devices.len()), (1, 0));
}
