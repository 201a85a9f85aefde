//! What it costs a vCPU thread to record an exit that came to it. The limit is
//! 30 ns an exit.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use instrumentation::user_exit::{AddressSpace, RangeMap, UserExitKind, UserExitRecorder};

fn record(c: &mut Criterion) {
    let map = RangeMap::new();
    let ranges: Vec<_> = (0..64)
        .map(|n| map.register("device", n << 12, 0x1000, AddressSpace::Mmio))
        .collect();
    let mut group = c.benchmark_group("record");
    group.bench_function("same port again", |bencher| {
        let recorder = UserExitRecorder::new();
        bencher.iter(|| {
            recorder.record(black_box(UserExitKind::IoOut), black_box(ranges[1]), 1, 500);
        });
    });
    group.bench_function("64 ranges, all kinds and sizes", |bencher| {
        let recorder = UserExitRecorder::new();
        let mut n = 0usize;
        bencher.iter(|| {
            n = n.wrapping_add(1);
            let kind = UserExitKind::ALL[n % 4];
            recorder.record(black_box(kind), ranges[n % 64], 1 << (n / 4 % 4), 500);
        });
    });
    group.bench_function("no access", |bencher| {
        let recorder = UserExitRecorder::new();
        bencher.iter(|| {
            recorder.record(black_box(UserExitKind::Hlt), Default::default(), 0, 500);
        });
    });
    group.finish();
}

criterion_group!(benches, record);
criterion_main!(benches);
