//! What it costs the API thread to make an answer for a machine of eight
//! vCPUs: the snapshot from samples, then each form of it.

use criterion::{Criterion, criterion_group, criterion_main};
use instrumentation::encode;
use instrumentation::snapshot::{ExitSnapshot, Host, Query, ReasonArrays, VcpuInput, VcpuSample};
use instrumentation::table::{Isa, STATS_SLOTS};
use instrumentation::user_exit::{AddressSpace, RangeMap, UserExitKind, UserExitRecorder};

const VCPUS: u32 = 8;

fn inputs(isa: Isa, ranges: &RangeMap) -> Vec<VcpuInput> {
    let serial = ranges.register("serial", 0x3f8, 8, AddressSpace::Port);
    (0..VCPUS)
        .map(|id| {
            let mut exits = vec![0; STATS_SLOTS];
            for entry in isa.table().reasons.iter().filter(|entry| entry.enabled) {
                let reason = instrumentation::table::ExitReason(entry.number);
                if let Some(slot) = isa.table().slot(reason) {
                    exits[slot.0] = 1_234_567 + u64::from(id);
                }
            }
            let times = |factor| exits.iter().map(|count| count * factor).collect();
            let recorder = UserExitRecorder::new();
            recorder.record(UserExitKind::IoOut, serial, 1, 4_321);
            VcpuInput {
                id,
                sample: VcpuSample {
                    exits: exits.iter().sum(),
                    guest_cycles: Some(1 << 40),
                    arrays: Some(ReasonArrays {
                        cycles: times(2_345),
                        blocked_cycles: times(17),
                        userspace_cycles: times(3),
                        preempted_cycles: times(5),
                        exits,
                    }),
                },
                user_exits: recorder.read(),
            }
        })
        .collect()
}

fn serve(c: &mut Criterion) {
    for isa in [Isa::Vmx, Isa::Svm] {
        let map = RangeMap::new();
        let inputs = inputs(isa, &map);
        let ranges = map.ranges();
        let host = Host {
            isa: Ok(isa),
            tsc_khz: 2_600_000,
        };
        let snapshot = ExitSnapshot::from_samples(&host, &ranges, &inputs);
        let mut group = c.benchmark_group(format!("{} of {VCPUS} vCPUs", isa.as_str()));
        group.bench_function("snapshot", |bencher| {
            bencher.iter(|| ExitSnapshot::from_samples(&host, &ranges, &inputs));
        });
        group.bench_function("json", |bencher| bencher.iter(|| encode::json(&snapshot)));
        group.bench_function("json by serde", |bencher| {
            bencher.iter(|| serde_json::to_vec(&snapshot));
        });
        group.bench_function("openmetrics", |bencher| {
            bencher.iter(|| encode::openmetrics(&[("vm", &snapshot)]));
        });
        group.bench_function("narrowed to a reason, as json", |bencher| {
            let query = Query {
                reason: Some(instrumentation::table::ExitReason(0x40)),
                ..Query::default()
            };
            bencher.iter(|| {
                let whole = ExitSnapshot::from_samples(&host, &ranges, &inputs);
                whole.narrow(&query).map(|narrow| encode::json(&narrow))
            });
        });
        group.finish();
    }
}

criterion_group!(benches, serve);
criterion_main!(benches);
