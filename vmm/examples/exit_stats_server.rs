//! The API server as the VMM has it, over a machine that is made up: where the
//! time to serve statistics is wanted and not the time that KVM takes, or statistics
//! that are known beforehand. The lab uses it in both ways.
//!
//!     exit_stats_server SOCKET vmx|svm VCPUS moving|still

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use hypervisor::ExitStatsSupport;
use instrumentation::snapshot::{ReasonArrays, VcpuSample};
use instrumentation::table::{Isa, STATS_SLOTS};
use instrumentation::user_exit::{AddressSpace, RangeMap, UserExitKind, UserExitRecorder};
use vmm::api::{ApiContext, StatusBoard, VmmIdentity, api_channel, start_server};
use vmm::stats::{BoxedError, Sampler, StatsHub, VmStats};

/// What occurs: about as many reasons as in a Linux guest.
const OCCUR: [&str; 24] = [
    "EXCEPTION_NMI",
    "EXTERNAL_INTERRUPT",
    "INTERRUPT_WINDOW",
    "CPUID",
    "HLT",
    "VMCALL",
    "CR_ACCESS",
    "DR_ACCESS",
    "IO_INSTRUCTION",
    "MSR_READ",
    "MSR_WRITE",
    "PAUSE_INSTRUCTION",
    "EPT_VIOLATION",
    "EPT_MISCONFIG",
    "WBINVD",
    "XSETBV",
    "INTR",
    "NMI",
    "VINTR",
    "IOIO",
    "MSR",
    "VMMCALL",
    "PAUSE",
    "NPF",
];

/// A vCPU whose reasons occur more often at each reading, if it is not to stand
/// still.
struct Busy {
    isa: Isa,
    readings: AtomicU64,
    /// What each reading adds.
    step: u64,
}

impl Sampler for Busy {
    fn sample(&self) -> Result<VcpuSample, BoxedError> {
        let readings = 1 + self.readings.fetch_add(self.step, Ordering::Relaxed);
        let mut exits = vec![0; STATS_SLOTS];
        for entry in self
            .isa
            .table()
            .reasons
            .iter()
            .filter(|entry| OCCUR.contains(&entry.symbol))
        {
            let reason = instrumentation::table::ExitReason(entry.number);
            if let Some(slot) = self.isa.table().slot(reason) {
                exits[slot.0] = readings * 1_234_567 + slot.0 as u64;
            }
        }
        let times = |factor| exits.iter().map(|count| count * factor).collect();
        Ok(VcpuSample {
            exits: exits.iter().sum(),
            guest_cycles: Some(readings * 2_600_000_000),
            arrays: Some(ReasonArrays {
                cycles: times(2_345),
                blocked_cycles: times(17),
                userspace_cycles: times(3),
                preempted_cycles: times(5),
                exits,
            }),
        })
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [socket, isa, vcpus, pace] = &args[..] else {
        bail!("Give SOCKET vmx|svm VCPUS moving|still");
    };
    let (isa, raw) = match isa.as_str() {
        "vmx" => (Isa::Vmx, 0x3_0101),
        "svm" => (Isa::Svm, 0x3_0201),
        _ => bail!("{isa} is neither vmx nor svm"),
    };
    let step = match pace.as_str() {
        "moving" => 1,
        "still" => 0,
        _ => bail!("{pace} is neither moving nor still"),
    };
    let kvm = ExitStatsSupport::from_raw(raw);
    anyhow::ensure!(kvm.isa() == Some(isa), "The capability reads {kvm:?}");
    let ranges = Arc::new(RangeMap::new());
    let serial = ranges.register("serial", 0x3f8, 8, AddressSpace::Port);
    let machine = (0..vcpus.parse::<u32>().context("How many vCPUs?")?)
        .map(|_| {
            let recorder = UserExitRecorder::new();
            recorder.record(UserExitKind::IoOut, serial, 1, 4_321);
            recorder.record(UserExitKind::IoIn, serial, 1, 1_234);
            let readings = AtomicU64::new(0);
            let busy = Busy {
                isa,
                readings,
                step,
            };
            (busy, Arc::new(recorder))
        })
        .collect();
    let stats = Arc::new(StatsHub::new());
    stats.publish(VmStats {
        vcpus: machine,
        ranges,
        isa: Some(isa),
        tsc_khz: 2_600_000,
        latency: None,
        kvm: Box::new(move || kvm),
    });
    let (sender, _queue) = api_channel().context("Cannot make a queue")?;
    let context = ApiContext {
        sender,
        board: StatusBoard::default(),
        stats,
        identity: VmmIdentity::default(),
    };
    let _server = start_server(Path::new(socket), context)?;
    // Whoever started this ends it.
    loop {
        std::thread::park();
    }
}
