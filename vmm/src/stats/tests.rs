use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use instrumentation::snapshot::{ReasonArrays, Source};
use instrumentation::table::{ExitReason, STATS_SLOTS};
use instrumentation::user_exit::{RangeId, UserExitKind};

use super::*;

/// A vCPU whose every reading has one more HLT exit. `None` counts nothing
/// by reason.
pub struct Ticking(pub Option<AtomicU64>);

impl Sampler for Ticking {
    fn sample(&self) -> Result<VcpuSample, BoxedError> {
        let Some(count) = &self.0 else {
            return Ok(VcpuSample {
                exits: 7,
                ..Default::default()
            });
        };
        let count = count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut exits = vec![0; STATS_SLOTS];
        exits[12] = count;
        Ok(VcpuSample {
            exits: count,
            guest_cycles: Some(0),
            arrays: Some(ReasonArrays {
                cycles: exits.iter().map(|exits| exits * 100).collect(),
                blocked_cycles: vec![0; STATS_SLOTS],
                userspace_cycles: vec![0; STATS_SLOTS],
                preempted_cycles: vec![0; STATS_SLOTS],
                exits,
            }),
        })
    }
}

struct Broken;

impl Sampler for Broken {
    fn sample(&self) -> Result<VcpuSample, BoxedError> {
        Err("out of order".into())
    }
}

pub const PATCHED: i32 = 0x3_0101;

pub fn machine(vcpus: usize, raw: i32) -> VmStats<Ticking> {
    let patched = raw & 0xff != 0;
    VmStats {
        vcpus: (0..vcpus)
            .map(|_| {
                let recorder = Arc::new(UserExitRecorder::new());
                recorder.record(UserExitKind::Hlt, RangeId::default(), 1, 10);
                (Ticking(patched.then(|| AtomicU64::new(0))), recorder)
            })
            .collect(),
        ranges: Arc::new(RangeMap::new()),
        isa: Some(Isa::Vmx),
        tsc_khz: 1_000_000,
        latency: None,
        kvm: Box::new(move || ExitStatsSupport::from_raw(raw)),
    }
}

fn reason(number: u32) -> Query {
    Query {
        reason: Some(ExitReason(number)),
        ..Query::default()
    }
}

#[test]
fn figures_live_until_retired_and_stay_until_cleared() {
    let hub = StatsHub::new();
    let read = || hub.snapshot(&Query::default()).map(|s| s.totals.exits);
    assert!(matches!(read(), Err(StatsError::NotBooted)));
    hub.publish(machine(2, PATCHED));
    assert_eq!(read().unwrap(), 2);
    assert_eq!(read().unwrap(), 4);
    hub.retire();
    assert_eq!(read().unwrap(), 6);
    hub.retire();
    assert_eq!(read().unwrap(), 6);
    hub.publish(machine(1, PATCHED));
    assert_eq!(read().unwrap(), 1);
    hub.clear();
    assert!(matches!(read(), Err(StatsError::NotBooted)));
}

#[test]
fn retiring_lets_go_of_the_vcpus() {
    let hub = StatsHub::new();
    let machine = machine(1, PATCHED);
    let recorder = Arc::downgrade(&machine.vcpus[0].1);
    hub.publish(machine);
    assert!(recorder.upgrade().is_some());
    hub.retire();
    assert!(recorder.upgrade().is_none());
}

#[test]
fn a_reason_has_three_outcomes() {
    let hub = StatsHub::new();
    hub.publish(machine(1, PATCHED));
    assert!(matches!(
        hub.snapshot(&reason(35)),
        Err(StatsError::Query(QueryError::UndefinedReason { .. }))
    ));
    for (number, enabled) in [(3, false), (12, true)] {
        let reasons = hub.snapshot(&reason(number)).unwrap().reasons.unwrap();
        assert_eq!(reasons.len(), 1);
        assert_eq!(reasons[0].enabled, enabled);
    }
}

#[test]
fn without_the_patch_there_are_totals_and_a_reason_why_no_more() {
    let hub = StatsHub::new();
    hub.publish(machine(2, 0));
    let snapshot = hub.snapshot(&reason(48)).unwrap();
    assert_eq!(snapshot.source, Source::Kvm);
    assert_eq!(snapshot.totals.exits, 14);
    assert_eq!(snapshot.reasons, None);
    assert!(snapshot.unavailable.unwrap().contains("not patched"));
    assert_eq!(snapshot.vmm.exits[0].exits, 2);
    assert!(hub.snapshot(&reason(35)).is_err());
}

#[test]
fn each_state_of_the_accounting_is_told_apart() {
    let why = |raw| {
        let why = judge(ExitStatsSupport::from_raw(raw), None).unwrap_err();
        why.to_string()
    };
    assert!(why(0).contains("not patched"));
    assert!(why(0x101).contains("exit_stats"));
    assert!(why(0x1_0902).contains("version 2"));
    let later = ExitStatsSupport::from_raw(0x1_0102);
    assert_eq!(judge(later, None), Ok(Isa::Vmx));
    assert_eq!(
        judge(ExitStatsSupport::from_raw(PATCHED), None),
        Ok(Isa::Vmx)
    );
}

#[test]
fn a_vcpu_that_cannot_be_read_is_named() {
    let hub = StatsHub::new();
    hub.publish(VmStats {
        vcpus: vec![(Broken, Arc::new(UserExitRecorder::new()))],
        ranges: Arc::new(RangeMap::new()),
        isa: None,
        tsc_khz: 1,
        latency: None,
        kvm: Box::new(|| ExitStatsSupport::from_raw(PATCHED)),
    });
    let error = hub.snapshot(&Query::default()).unwrap_err();
    assert_eq!(error.to_string(), "Cannot read the counters of vCPU 0");
}

#[test]
fn switching_counting_is_judged_at_each_reading() {
    const OFF: i32 = 0x101;
    let hub = StatsHub::new();
    // Booted while it was off.
    let raw = Arc::new(AtomicI32::new(OFF));
    let asked = Arc::clone(&raw);
    hub.publish(VmStats {
        kvm: Box::new(move || ExitStatsSupport::from_raw(asked.load(Ordering::Relaxed))),
        ..machine(2, PATCHED)
    });
    let read = || hub.snapshot(&Query::default()).unwrap();
    let why = || read().unavailable.unwrap_or_default();
    assert!(
        why().contains("off") && !why().contains("last seen"),
        "{}",
        why()
    );
    assert_eq!(read().reasons, None);
    raw.store(PATCHED, Ordering::Relaxed);
    assert!(read().reasons.is_some());
    assert_eq!(why(), "");
    raw.store(OFF, Ordering::Relaxed);
    assert!(why().contains("it was last seen on at 2"), "{}", why());
    assert_eq!(read().reasons, None);
    assert!(read().totals.kvm_exits > Some(0));
    raw.store(PATCHED, Ordering::Relaxed);
    hub.retire();
    assert!(read().ended && read().reasons.is_some());
}

#[test]
fn each_boot_has_an_id_and_each_reading_its_time() {
    let hub = StatsHub::new();
    let boot = || {
        hub.publish(machine(1, PATCHED));
        let read = || hub.snapshot(&Query::default()).unwrap();
        let (first, second) = (read(), read());
        assert_eq!(first.boot_id, second.boot_id);
        assert!(first.monotonic_us <= second.monotonic_us);
        assert!(first.unix_us > Some(1_700_000_000_000_000));
        first.boot_id.unwrap()
    };
    let (one, two) = (boot(), boot());
    assert_eq!(one.len(), 32);
    assert_ne!(one, two);
}

/// A vCPU whose counters are these, one after the other.
struct Script(Mutex<Vec<u64>>);

impl Sampler for Script {
    fn sample(&self) -> Result<VcpuSample, BoxedError> {
        let mut exits = vec![0; STATS_SLOTS];
        exits[12] = self.0.lock().unwrap().remove(0);
        Ok(VcpuSample {
            exits: exits[12],
            guest_cycles: None,
            arrays: Some(ReasonArrays {
                cycles: vec![0; STATS_SLOTS],
                blocked_cycles: vec![0; STATS_SLOTS],
                userspace_cycles: vec![0; STATS_SLOTS],
                preempted_cycles: vec![0; STATS_SLOTS],
                exits,
            }),
        })
    }
}

#[test]
fn a_counter_that_was_read_half_written_is_read_again() {
    let hub = StatsHub::new();
    // 0x1ff becomes 0x200: its lower byte was read before, its upper one after.
    let script = Mutex::new(vec![0x1ff, 0x100, 0x200, 0x201]);
    hub.publish(VmStats {
        vcpus: vec![(Script(script), Arc::new(UserExitRecorder::new()))],
        ranges: Arc::new(RangeMap::new()),
        isa: Some(Isa::Vmx),
        tsc_khz: 1,
        latency: None,
        kvm: Box::new(|| ExitStatsSupport::from_raw(PATCHED)),
    });
    let read = || hub.snapshot(&Query::default()).unwrap().totals.exits;
    assert_eq!([read(), read(), read()], [0x1ff, 0x200, 0x201]);
}

#[test]
fn histograms_are_read_anew_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("exit_stats_latency");
    std::fs::write(&path, "latency on\n0xc HLT <1024:4\n").unwrap();
    let hub = StatsHub::new();
    hub.publish(VmStats {
        latency: Some(File::open(&path).unwrap()),
        ..machine(1, PATCHED)
    });
    let read = |vcpu| {
        let query = Query {
            vcpu,
            ..Query::default()
        };
        hub.snapshot(&query).unwrap().latency
    };
    assert_eq!(read(None).unwrap().reasons[0].exits(), 4);
    std::fs::write(&path, "latency on\n0xc HLT <1024:5\n").unwrap();
    assert_eq!(read(None).unwrap().reasons[0].exits(), 5);
    assert_eq!(read(Some(0)), None);
    std::fs::write(&path, "something else").unwrap();
    assert_eq!(read(None), None);
}
