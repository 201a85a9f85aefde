//! The exit statistics of the machine, for whoever asks.
//!
//! The control thread publishes what can be read when the vCPUs exist and
//! retires it when they end; the API thread reads in between, straight from
//! the kernel's statistics files and the vCPU threads' recorders. A reader
//! takes no lock that a vCPU takes, and reading causes no exit.

use std::error::Error;
use std::sync::{Arc, PoisonError, RwLock};

use hypervisor::{ExitStatsSupport, StatsFd};
use instrumentation::snapshot::{ExitSnapshot, Host, Query, QueryError, VcpuInput, VcpuSample};
use instrumentation::table::{Isa, ReasonStatus};
use instrumentation::user_exit::{RangeMap, UserExitRecorder};

/// The last version of the kernel's interface that this program knows. It reads
/// the ones before too: the first has no preempted cycles.
const ABI_VERSION: u8 = 2;

/// Something that gives a vCPU's counters: its statistics file.
pub trait Sampler: Send + Sync {
    /// The counters as they are now.
    fn sample(&self) -> Result<VcpuSample, BoxedError>;
}

/// Why a vCPU's counters cannot be read.
pub type BoxedError = Box<dyn Error + Send + Sync>;

impl Sampler for StatsFd {
    fn sample(&self) -> Result<VcpuSample, BoxedError> {
        Ok(StatsFd::sample(self)?)
    }
}

/// Everything that the figures of a running machine are read from.
pub struct VmStats<S = StatsFd> {
    /// Per vCPU, by number: the kernel's figures and the thread's own.
    pub vcpus: Vec<(S, Arc<UserExitRecorder>)>,
    /// Names of the device ranges in the recorders.
    pub ranges: Arc<RangeMap>,
    /// The instruction set of the host's virtualisation.
    pub isa: Option<Isa>,
    /// TSC ticks per millisecond.
    pub tsc_khz: u32,
    /// What KVM says of its accounting.
    pub kvm: ExitStatsSupport,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// No machine has been booted.
    #[error("No virtual machine has been booted")]
    NotBooted,
    /// The query asks for what does not exist.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The kernel does not give a vCPU's counters.
    #[error("Cannot read the counters of vCPU {vcpu}")]
    Sample {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        source: BoxedError,
    },
}

trait Reader: Send + Sync {
    fn read(&self) -> Result<ExitSnapshot, StatsError>;
}

impl<S: Sampler> Reader for VmStats<S> {
    fn read(&self) -> Result<ExitSnapshot, StatsError> {
        let inputs = self
            .vcpus
            .iter()
            .enumerate()
            .map(|(id, (sampler, recorder))| {
                Ok(VcpuInput {
                    id: id as u32,
                    sample: sampler
                        .sample()
                        .map_err(|source| StatsError::Sample { vcpu: id, source })?,
                    user_exits: recorder.read(),
                })
            })
            .collect::<Result<Vec<_>, StatsError>>()?;
        let host = Host {
            isa: judge(self.kvm),
            tsc_khz: self.tsc_khz,
        };
        // Ranges come last: a recorder may name a range registered meanwhile.
        Ok(ExitSnapshot::from_samples(
            &host,
            &self.ranges.ranges(),
            &inputs,
        ))
    }
}

/// Whose exits KVM counts, or why it counts none.
fn judge(kvm: ExitStatsSupport) -> Result<Isa, String> {
    match (kvm.version(), kvm.isa()) {
        (0, _) => Err("This host's KVM is not patched to count exits by reason".into()),
        (1..=ABI_VERSION, Some(_)) if !kvm.accounting() => Err(
            "This host's KVM counts no exits by reason: the parameter exit_stats of kvm.ko is off"
                .into(),
        ),
        (1..=ABI_VERSION, Some(isa)) => Ok(isa),
        (version, _) => Err(format!(
            "This host's KVM counts exits in a form that this program does not know: \
             version {version} where 1 to {ABI_VERSION} are known"
        )),
    }
}

#[derive(Clone)]
enum State {
    Empty,
    Live(Arc<dyn Reader>),
    Ended(Arc<ExitSnapshot>),
}

struct Entry {
    state: State,
    isa: Option<Isa>,
}

/// Where the figures of the machine are found, whatever state it is in. The
/// lock is held to exchange a pointer only.
pub struct StatsHub {
    entry: RwLock<Entry>,
}

impl StatsHub {
    /// A hub with nothing to tell.
    pub fn new() -> Self {
        StatsHub {
            entry: RwLock::new(Entry {
                state: State::Empty,
                isa: None,
            }),
        }
    }

    /// Makes the figures of a machine readable, in place of an earlier one's.
    pub fn publish<S: Sampler + 'static>(&self, stats: VmStats<S>) {
        let isa = stats.isa;
        self.replace(State::Live(Arc::new(stats)), isa);
    }

    /// Takes the last figures of the machine and lets go of its vCPUs. To be
    /// called when the vCPU threads have ended; the figures stay readable.
    pub fn retire(&self) {
        let (state, isa) = self.current();
        let State::Live(reader) = state else { return };
        let state = match reader.read() {
            Ok(snapshot) => State::Ended(Arc::new(snapshot)),
            Err(error) => {
                log::error!("the last exit statistics are lost: {error}");
                State::Empty
            }
        };
        self.replace(state, isa);
    }

    /// Forgets the figures: the machine was deleted.
    pub fn clear(&self) {
        self.replace(State::Empty, None);
    }

    /// The figures as they are now, or as they were at the end.
    pub fn snapshot(&self, query: &Query) -> Result<ExitSnapshot, StatsError> {
        let (state, isa) = self.current();
        let snapshot = match state {
            State::Empty => return Err(StatsError::NotBooted),
            State::Live(reader) => reader.read()?,
            State::Ended(snapshot) => ExitSnapshot::clone(&snapshot),
        };
        // A KVM that counts nothing does not change what the manual defines.
        if let (Some(reason), Some(isa)) = (query.reason, isa)
            && isa.table().status(reason) == ReasonStatus::Undefined
        {
            return Err(QueryError::UndefinedReason { reason, isa }.into());
        }
        Ok(snapshot.narrow(query)?)
    }

    fn current(&self) -> (State, Option<Isa>) {
        let entry = self.entry.read().unwrap_or_else(PoisonError::into_inner);
        (entry.state.clone(), entry.isa)
    }

    fn replace(&self, state: State, isa: Option<Isa>) {
        let old = {
            let mut entry = self.entry.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *entry, Entry { state, isa })
        };
        // Closing a machine's files takes a while: not under the lock.
        drop(old);
    }
}

impl Default for StatsHub {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

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
            kvm: ExitStatsSupport::from_raw(raw),
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
        let why = |raw| judge(ExitStatsSupport::from_raw(raw)).unwrap_err();
        assert!(why(0).contains("not patched"));
        assert!(why(0x101).contains("exit_stats"));
        assert!(why(0x1_0103).contains("version 3"));
        for raw in [PATCHED, 0x3_0102] {
            assert_eq!(judge(ExitStatsSupport::from_raw(raw)), Ok(Isa::Vmx));
        }
    }

    #[test]
    fn a_vcpu_that_cannot_be_read_is_named() {
        let hub = StatsHub::new();
        hub.publish(VmStats {
            vcpus: vec![(Broken, Arc::new(UserExitRecorder::new()))],
            ranges: Arc::new(RangeMap::new()),
            isa: None,
            tsc_khz: 1,
            kvm: ExitStatsSupport::from_raw(PATCHED),
        });
        let error = hub.snapshot(&Query::default()).unwrap_err();
        assert_eq!(error.to_string(), "Cannot read the counters of vCPU 0");
    }
}
