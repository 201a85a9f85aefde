//! Each form is held against a golden file beside this one. After a change that
//! is meant, `UPDATE_GOLDENS=1 cargo test -p instrumentation` writes them anew;
//! read the difference before committing it.

use super::*;
use crate::guest::{
    GuestSnapshot, LEAF_INFO, LEAF_REASON_CYCLES, LEAF_REASON_EXITS, LEAF_TOTAL_CYCLES,
    LEAF_TOTAL_EXITS, Registers, VERSION,
};
use crate::snapshot::{ExitSnapshot, Host, ReasonArrays, VcpuInput, VcpuSample};
use crate::table::{Isa, STATS_SLOTS};
use crate::user_exit::{Access, AddressSpace, RangeId, RangeMap, UserExitKind, UserExitRecorder};

fn arrays() -> ReasonArrays {
    let mut arrays = ReasonArrays {
        exits: vec![0; STATS_SLOTS],
        cycles: vec![0; STATS_SLOTS],
        blocked_cycles: vec![0; STATS_SLOTS],
        userspace_cycles: vec![0; STATS_SLOTS],
        preempted_cycles: vec![0; STATS_SLOTS],
    };
    for (slot, exits, cycles, blocked, userspace, preempted) in [
        (0, 0, 0, 0, 0, 0),
        (10, 5, 4_785, 0, 0, 0),
        (12, 2, 900, 7_000_000, 0, 0),
        (30, 4, 1_234_567, 0, 60_000, 3_456),
        (86, 1, 10, 0, 0, 0),
    ] {
        arrays.exits[slot] = exits;
        arrays.cycles[slot] = cycles;
        arrays.blocked_cycles[slot] = blocked;
        arrays.userspace_cycles[slot] = userspace;
        arrays.preempted_cycles[slot] = preempted;
    }
    arrays
}

/// One vCPU with made-up figures, small enough to check by eye.
fn snapshot(isa: Result<Isa, String>) -> ExitSnapshot {
    let ranges = RangeMap::new();
    let serial = ranges.register("serial", 0x3f8, 8, AddressSpace::Port);
    let recorder = UserExitRecorder::new();
    for _ in 0..3 {
        recorder.record(UserExitKind::IoOut, serial, 1, 4_000);
    }
    let register = |range, register| Access { range, register };
    recorder.record(UserExitKind::IoIn, register(serial, 5), 1, 1_000);
    let probed = register(Default::default(), 0xcf8);
    recorder.record(UserExitKind::IoIn, probed, 1, 2_000);
    recorder.record(UserExitKind::Interrupted, RangeId::default(), 0, 2_000);
    let input = VcpuInput {
        id: 0,
        sample: VcpuSample {
            exits: 12,
            guest_cycles: Some(2_000_000_000),
            arrays: isa.is_ok().then(arrays),
        },
        user_exits: recorder.read(),
    };
    let host = Host {
        isa,
        tsc_khz: 2_000_000,
    };
    ExitSnapshot::from_samples(&host, &ranges.ranges(), &[input])
}

fn unpatched() -> ExitSnapshot {
    snapshot(Err("this KVM does not count exits by reason".into()))
}

fn assert_golden(name: &str, found: &str) {
    let path = format!("{}/src/encode/goldens/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == golden,
        "{name} should read\n{golden}\nbut reads\n{found}"
    );
}

#[test]
fn a_table_shows_what_occurred_most_exits_first() {
    assert_golden(
        "table.txt",
        &table(&snapshot(Ok(Isa::Vmx)), &RowOptions::default()),
    );
}

#[test]
fn a_table_in_ticks_says_so() {
    let options = RowOptions {
        ticks: true,
        ..RowOptions::default()
    };
    assert_golden("table-ticks.txt", &table(&snapshot(Ok(Isa::Vmx)), &options));
}

#[test]
fn histograms_are_shown_in_the_table_and_as_metrics() {
    let mut snapshot = snapshot(Ok(Isa::Vmx));
    let kernels = "latency on\n0xa CPUID <1024:4 <2048:1\n0x1e IO_INSTRUCTION <524288:3 more:1\n";
    snapshot.latency = crate::snapshot::Latency::parse(kernels, snapshot.tsc_khz);
    assert_golden(
        "table-latency.txt",
        &table(&snapshot, &RowOptions::default()),
    );
    let metrics = openmetrics(&[("one", &snapshot)]);
    let series = |name: &str, le: &str| {
        let start = format!("kvm_exit_latency_seconds_{name}{{");
        let line = metrics.lines().find(|line| {
            line.starts_with(&start) && line.contains("\"IO_INSTRUCTION\"") && line.contains(le)
        });
        line.and_then(|line| line.rsplit(' ').next())
            .map(str::to_owned)
    };
    assert_eq!(series("count", "").as_deref(), Some("4"));
    assert_eq!(series("bucket", "le=\"+Inf\"").as_deref(), Some("4"));
    assert_eq!(series("bucket", "le=\"0.000524288\"").as_deref(), Some("3"));
    assert_eq!(series("bucket", "le=\"0.000032768\"").as_deref(), Some("0"));
}

#[test]
fn a_difference_has_a_duration_and_rates() {
    let at = |monotonic_us| ExitSnapshot {
        boot_id: Some("a".into()),
        monotonic_us: Some(monotonic_us),
        ..snapshot(Ok(Isa::Vmx))
    };
    let mut earlier = at(1_000_000);
    earlier.totals.exits -= 4;
    earlier.totals.cycles = Some(1_240_262 - 1_234_567);
    earlier.totals.userspace_cycles = Some(0);
    earlier.totals.preempted_cycles = Some(0);
    earlier
        .reasons
        .as_mut()
        .unwrap()
        .retain(|row| row.number != Some(30));
    let delta = at(3_500_000).since(&earlier).unwrap();
    assert_golden(
        "table-difference.txt",
        &table(&delta, &RowOptions::default()),
    );
}

#[test]
fn a_table_that_is_not_current_or_not_whole_says_so() {
    let mut last = snapshot(Ok(Isa::Vmx));
    last.ended = true;
    last.totals.uncounted_exits = 1234;
    let text = table(&last, &RowOptions::default());
    assert!(text.contains("The VM has ended: these are its last counters.\n"));
    assert!(
        text.contains("At least 1,234 more exits were not counted by reason: counting was off.\n")
    );
}

#[test]
fn a_table_of_all_reasons_by_number_has_one_row_a_reason() {
    let options = RowOptions {
        sort: SortBy::Number,
        all: true,
        ticks: false,
    };
    let text = reason_table(&snapshot(Ok(Isa::Vmx)), &options);
    let numbers: Vec<u32> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();
    let expected: Vec<u32> = Isa::Vmx
        .table()
        .reasons
        .iter()
        .map(|row| row.number)
        .collect();
    assert_eq!(numbers, expected);
}

#[test]
fn a_table_by_cycles_puts_the_dearest_first() {
    let options = RowOptions {
        sort: SortBy::Cycles,
        ..RowOptions::default()
    };
    let snapshot = snapshot(Ok(Isa::Vmx));
    let first = options.rows(snapshot.reasons.as_ref().unwrap())[0];
    assert_eq!(first.number, Some(30));
}

#[test]
fn a_table_of_an_unpatched_host_says_why_it_has_no_reasons() {
    assert_golden(
        "table-unpatched.txt",
        &table(&unpatched(), &RowOptions::default()),
    );
}

#[test]
fn csv_quotes_only_what_needs_it() {
    assert_golden(
        "exits.csv",
        &csv(&snapshot(Ok(Isa::Vmx)), &RowOptions::default()),
    );
    let text = csv(
        &snapshot(Ok(Isa::Svm)),
        &RowOptions {
            all: true,
            ..RowOptions::default()
        },
    );
    assert!(text.contains(",\"MWAIT, armed only\","));
}

#[test]
fn csv_of_an_unpatched_host_has_kvms_totals() {
    assert_golden(
        "exits-unpatched.csv",
        &csv(&unpatched(), &RowOptions::default()),
    );
}

#[test]
fn openmetrics_has_a_series_for_each_vm_vcpu_and_reason() {
    let (one, two) = (snapshot(Ok(Isa::Vmx)), unpatched());
    assert_golden(
        "metrics.txt",
        &openmetrics(&[("one", &one), ("t\"wo", &two)]),
    );
}

fn host(vms: Vec<VmMetrics>, detail: Detail) -> HostMetrics {
    HostMetrics {
        vms,
        module_version: Some("1.0+6.1".into()),
        module_counts: true,
        unreadable_folders: 0,
        detail,
    }
}

#[test]
fn openmetrics_of_a_host_says_which_vms_gave_nothing_and_why() {
    let vm = |name: &str, snapshot| VmMetrics {
        name: name.into(),
        snapshot,
    };
    let text = openmetrics_of_host(host(
        vec![
            vm("one", Ok(snapshot(Ok(Isa::Vmx)))),
            vm("stock", Ok(unpatched())),
            vm("two", Err("timeout")),
        ],
        Detail::Vm,
    ));
    for line in [
        "kvm_exit_stats_up{vm=\"one\"} 1\n",
        "kvm_exit_stats_up{vm=\"two\"} 0\n",
        "kvm_exit_stats_down{vm=\"two\",reason=\"timeout\"} 1\n",
        "kvm_exit_stats_host_counts 1\n",
        "kvm_exit_stats_available{vm=\"one\"} 1\n",
        "kvm_exit_stats_available{vm=\"stock\"} 0\n",
        "kvm_exit_stats_info{vm=\"one\",source=\"kvm-exit-stats\",isa=\"vmx\",module_version=\"1.0+6.1\"} 1\n",
        "kvm_exits_total{vm=\"one\",reason=\"CPUID\"} 5\n",
        "kvm_vm_exits_total{vm=\"stock\"} 12\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    assert!(!text.contains("kvm_exit_stats_down{vm=\"one\""));
    assert!(!text.contains("kvm_exits_total{vm=\"two\""));
}

/// Series of VMs whose vCPUs all exit for the same reasons.
fn series(vcpus: u32, detail: Detail) -> usize {
    let sample = VcpuSample {
        exits: 12,
        guest_cycles: Some(1),
        arrays: Some(arrays()),
    };
    let inputs: Vec<_> = (0..vcpus)
        .map(|id| VcpuInput {
            id,
            sample: sample.clone(),
            user_exits: Vec::new(),
        })
        .collect();
    let known = Host {
        isa: Ok(Isa::Vmx),
        tsc_khz: 1_000_000,
    };
    let snapshot = ExitSnapshot::from_samples(&known, &[], &inputs);
    let vms = (0..20)
        .map(|index| VmMetrics {
            name: index.to_string(),
            snapshot: Ok(snapshot.clone()),
        })
        .collect();
    openmetrics_of_host(host(vms, detail))
        .lines()
        .filter(|line| !line.starts_with('#'))
        .count()
}

#[test]
fn vcpus_multiply_series_only_where_they_are_asked_for() {
    assert_eq!(series(64, Detail::Vm), series(1, Detail::Vm));
    let by_vcpu = |vcpus| series(vcpus, Detail::Vcpu);
    assert!(by_vcpu(64) > by_vcpu(1) + 63 * 20);
}

/// Answers a guest's CPUID with the same figures as [`snapshot`].
fn leaves(leaf: u32, subleaf: u32) -> Registers {
    let (exits, cycles) = match subleaf {
        10 => (5, 4_785),
        12 => (2, 900),
        30 => (4, 1_234_567),
        _ => (0, 0),
    };
    let (eax, ebx, ecx, edx) = match leaf {
        LEAF_INFO => (VERSION, Isa::Vmx.signature(), 1, 2_000_000),
        LEAF_TOTAL_EXITS => (12, 0, 0, 0),
        LEAF_TOTAL_CYCLES => (0, 0, 1_240_262, 0),
        LEAF_REASON_EXITS => (exits, 0, 0, 0),
        LEAF_REASON_CYCLES => (0, 0, cycles, 0),
        _ => panic!("the reader asked for leaf {leaf:#x}"),
    };
    Registers { eax, ebx, ecx, edx }
}

#[test]
fn the_guest_reads_a_table_in_the_form_of_the_hosts() {
    let snapshot = GuestSnapshot::read(&leaves, None).unwrap();
    assert_golden("guest.txt", &guest_table(&snapshot, GuestRows::default()));
    let all = GuestRows {
        sort: SortBy::Cycles,
        all: true,
        ticks: true,
    };
    assert_golden("guest-all.txt", &guest_table(&snapshot, all));
}

#[test]
fn the_guests_json_has_the_field_names_of_the_hosts() {
    let snapshot = GuestSnapshot::read(&leaves, None).unwrap();
    let json = serde_json::to_string(&snapshot).unwrap() + "\n";
    assert_golden("guest.json", &json);
}
