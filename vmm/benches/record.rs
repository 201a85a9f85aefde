//! What it costs a vCPU's thread to record an exit that came to it: 30 ns at most.
//! `cargo lab bench record` runs this and judges it.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use hypervisor::rdtsc;
use instrumentation::user_exit::{AddressSpace, RangeId, RangeMap, UserExitKind, UserExitRecorder};

/// As many ranges as a machine with a good number of devices has.
fn ranges() -> Vec<RangeId> {
    let map = RangeMap::new();
    (0..64)
        .map(|n| map.register("device", n << 12, 0x1000, AddressSpace::Mmio))
        .collect()
}

fn record(c: &mut Criterion) {
    let ranges = ranges();
    let mut group = c.benchmark_group("record");
    group
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1));
    // All that is done for an access besides serving it: both readings of the
    // clock, then the record.
    group.bench_function("access", |bencher| {
        let recorder = UserExitRecorder::new();
        bencher.iter(|| {
            let start = rdtsc();
            let range = black_box(ranges[1]);
            let ticks = rdtsc().saturating_sub(start);
            recorder.record(black_box(UserExitKind::IoOut), range, 1, ticks);
        });
    });
    // The same without the clock, which is the processor's.
    group.bench_function("access-untimed", |bencher| {
        let recorder = UserExitRecorder::new();
        bencher.iter(|| {
            recorder.record(black_box(UserExitKind::IoOut), black_box(ranges[1]), 1, 500);
        });
    });
    group.bench_function("accesses-everywhere", |bencher| {
        let recorder = UserExitRecorder::new();
        let mut n = 0usize;
        bencher.iter(|| {
            n = n.wrapping_add(1);
            let start = rdtsc();
            let kind = UserExitKind::ALL[n % 4];
            let range = black_box(ranges[n % 64]);
            let ticks = rdtsc().saturating_sub(start);
            recorder.record(black_box(kind), range, 1 << (n / 4 % 4), ticks);
        });
    });
    group.bench_function("other", |bencher| {
        let recorder = UserExitRecorder::new();
        bencher.iter(|| {
            recorder.record(black_box(UserExitKind::Hlt), RangeId::default(), 0, 0);
        });
    });
    group.finish();
}

criterion_group!(benches, record);
criterion_main!(benches);
