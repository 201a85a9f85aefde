//! The exit statistics of the machine, for whoever asks.
//!
//! The control thread publishes what can be read when the vCPUs exist and
//! retires it when they end; the API thread reads in between, straight from
//! the kernel's statistics files and the vCPU threads' recorders. A reader
//! takes no lock that a vCPU takes, and reading causes no exit.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use hypervisor::{ExitStatsSupport, StatsFd};
use instrumentation::snapshot::{
    ExitSnapshot, Host, Latency, Query, QueryError, VcpuInput, VcpuSample,
};
use instrumentation::table::{Isa, ReasonStatus};
use instrumentation::user_exit::{RangeMap, UserExitRecorder};
use jiff::Timestamp;
use nix::time::ClockId;

/// Something that gives a vCPU's counters: its statistics file.
pub trait Sampler: Send + Sync {
    /// The counters as they are now.
    fn sample(&self) -> Result<VcpuSample, BoxedError>;

    /// Whether the vCPU sleeps in the kernel until an interrupt comes for it;
    /// nothing if the kernel does not tell.
    fn is_blocking(&self) -> Option<bool> {
        None
    }
}

/// Why a vCPU's counters cannot be read.
pub type BoxedError = Box<dyn Error + Send + Sync>;

impl Sampler for StatsFd {
    fn sample(&self) -> Result<VcpuSample, BoxedError> {
        Ok(StatsFd::sample(self)?)
    }

    fn is_blocking(&self) -> Option<bool> {
        StatsFd::is_blocking(self)
    }
}

/// Everything that the statistics of a running machine are read from.
pub struct VmStats<S = StatsFd> {
    /// Per vCPU, by number: the kernel's statistics and the thread's own.
    pub vcpus: Vec<(S, Arc<UserExitRecorder>)>,
    /// Names of the device ranges in the recorders.
    pub ranges: Arc<RangeMap>,
    /// The instruction set of the host's virtualisation.
    pub isa: Option<Isa>,
    /// TSC ticks per millisecond.
    pub tsc_khz: u32,
    /// The kernel's table of latency histograms, if the VM keeps some.
    pub latency: Option<File>,
    /// Asks KVM about its accounting, which can be switched at any time.
    pub kvm: Box<dyn Fn() -> ExitStatsSupport + Send + Sync>,
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
    fn is_blocking(&self, vcpu: usize) -> Option<bool>;
}

/// A running machine's statistics and what is remembered of the readings.
struct Live<S> {
    stats: VmStats<S>,
    boot_id: String,
    /// Taken by readers alone: the API thread, and the control thread at the end.
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// The last sample of each vCPU.
    samples: Vec<Option<VcpuSample>>,
    /// When counting was last seen to be on.
    counting: Option<Timestamp>,
}

/// Readings of a vCPU whose counters fell. A counter may be read half written.
const READINGS: usize = 3;

impl<S: Sampler> Live<S> {
    fn new(stats: VmStats<S>, boot_id: String) -> Self {
        let samples = stats.vcpus.iter().map(|_| None).collect();
        Live {
            stats,
            boot_id,
            memory: Mutex::new(Memory {
                samples,
                counting: None,
            }),
        }
    }

    /// The histograms; none if they cannot be read.
    fn latency(&self) -> Option<Latency> {
        let file = self.stats.latency.as_ref()?;
        let text = read_whole(file)
            .inspect_err(|error| log::debug!("cannot read the latency histograms: {error}"))
            .ok()?;
        Latency::parse(&text, self.stats.tsc_khz)
    }

    /// A vCPU's counters, read again if one of them is below what it was before:
    /// either this reading or that one saw it half written.
    fn sample(&self, vcpu: usize, last: &mut Option<VcpuSample>) -> Result<VcpuSample, StatsError> {
        let read = || {
            let sampler = &self.stats.vcpus[vcpu].0;
            sampler
                .sample()
                .map_err(|source| StatsError::Sample { vcpu, source })
        };
        let mut sample = read()?;
        if let Some(before) = last {
            for _ in 1..READINGS {
                if !sample.is_below(before) {
                    break;
                }
                sample = read()?;
            }
        }
        *last = Some(sample.clone());
        Ok(sample)
    }
}

impl<S: Sampler> Reader for Live<S> {
    fn is_blocking(&self, vcpu: usize) -> Option<bool> {
        self.stats.vcpus.get(vcpu)?.0.is_blocking()
    }

    fn read(&self) -> Result<ExitSnapshot, StatsError> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Memory { samples, counting } = &mut *memory;
        let (unix_us, monotonic_us) = clocks();
        let isa = judge((self.stats.kvm)(), *counting);
        if isa.is_ok() {
            *counting = Some(Timestamp::now());
        }
        let inputs = samples
            .iter_mut()
            .enumerate()
            .map(|(id, last)| {
                Ok(VcpuInput {
                    id: id as u32,
                    sample: self.sample(id, last)?,
                    user_exits: self.stats.vcpus[id].1.read(),
                })
            })
            .collect::<Result<Vec<_>, StatsError>>()?;
        let host = Host {
            isa: isa.map_err(|why| why.to_string()),
            tsc_khz: self.stats.tsc_khz,
        };
        // Ranges come last: a recorder may name a range registered meanwhile.
        let ranges = self.stats.ranges.ranges();
        Ok(ExitSnapshot {
            boot_id: Some(self.boot_id.clone()),
            unix_us,
            monotonic_us,
            latency: self.latency(),
            ..ExitSnapshot::from_samples(&host, &ranges, &inputs)
        })
    }
}

/// A file of the kernel's from its beginning, made anew by each reading.
fn read_whole(file: &File) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut part = [0; 16 << 10];
    while bytes.len() < LARGEST_TABLE {
        match file.read_at(&mut part, bytes.len() as u64)? {
            0 => break,
            length => bytes.extend_from_slice(&part[..length]),
        }
    }
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Far above 172 lines of 40 buckets.
const LARGEST_TABLE: usize = 1 << 20;

/// Microseconds of the monotonic clock, as in a snapshot.
#[must_use]
pub fn monotonic_us() -> u64 {
    clocks().1.unwrap_or(0)
}

/// Microseconds since 1970 and of the monotonic clock.
fn clocks() -> (Option<u64>, Option<u64>) {
    // Not by rustix, which asks for the vDSO with a system call that the API
    // thread's filter forbids.
    let of = |clock: ClockId| {
        let time = clock.now().ok()?;
        let seconds = u64::try_from(time.tv_sec()).ok()?;
        let rest = u64::try_from(time.tv_nsec()).ok()? / 1000;
        seconds.checked_mul(1_000_000)?.checked_add(rest)
    };
    (of(ClockId::CLOCK_REALTIME), of(ClockId::CLOCK_MONOTONIC))
}

/// 128 random bits in hexadecimal.
fn random_id() -> String {
    let mut bytes = [0u8; 16];
    // As few bytes as these are always had at once, whole and without an error.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    format!("{:032x}", u128::from_le_bytes(bytes))
}

/// Why KVM counts no exits by reason.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum NotCounting {
    #[error("This host's KVM is not patched to count exits by reason")]
    NotPatched,
    #[error("Counting is off: the parameter exit_stats of kvm.ko is N{}", last_seen(.0))]
    Off(Option<Timestamp>),
    #[error(
        "This host's KVM counts exits of an instruction set that this program does not know, \
         version {0} of its interface"
    )]
    UnknownIsa(u8),
}

fn last_seen(counting: &Option<Timestamp>) -> String {
    counting.map_or_else(String::new, |time| {
        format!("; it was last seen on at {time:.0}")
    })
}

/// Whose exits KVM counts, or why it counts none; `counting` is when it last did.
fn judge(kvm: ExitStatsSupport, counting: Option<Timestamp>) -> Result<Isa, NotCounting> {
    match (kvm.version(), kvm.isa()) {
        (0, _) => Err(NotCounting::NotPatched),
        (_, Some(_)) if !kvm.accounting() => Err(NotCounting::Off(counting)),
        // Later versions add to the first: what is there of it, the statistics
        // themselves say.
        (_, Some(isa)) => Ok(isa),
        (version, None) => Err(NotCounting::UnknownIsa(version)),
    }
}

#[derive(Clone)]
enum State {
    Empty,
    Live(Arc<dyn Reader>),
    /// What was read last; nothing is left to read from.
    Last(Arc<ExitSnapshot>),
}

struct Entry {
    state: State,
    isa: Option<Isa>,
    /// Of the last machine whose statistics were readable.
    boot_id: String,
}

impl Entry {
    fn empty() -> Self {
        Entry {
            state: State::Empty,
            isa: None,
            boot_id: String::new(),
        }
    }
}

/// Where the statistics of the machine are found, whatever state it is in. The
/// lock is held to exchange a pointer only.
pub struct StatsHub {
    entry: RwLock<Entry>,
}

impl StatsHub {
    /// A hub with nothing to tell.
    pub fn new() -> Self {
        StatsHub {
            entry: RwLock::new(Entry::empty()),
        }
    }

    /// Makes the statistics of a machine readable, in place of an earlier one's.
    pub fn publish<S: Sampler + 'static>(&self, stats: VmStats<S>) {
        self.publish_as(stats, random_id());
    }

    /// Makes the statistics of a machine readable that goes on from another one's
    /// state: for readers it is the same boot.
    pub fn carry_on<S: Sampler + 'static>(&self, stats: VmStats<S>) {
        self.publish_as(stats, self.boot_id());
    }

    /// What tells this boot of the guest from others.
    #[must_use]
    pub fn boot_id(&self) -> String {
        let entry = self.entry.read().unwrap_or_else(PoisonError::into_inner);
        entry.boot_id.clone()
    }

    /// Makes the statistics of a machine readable that goes on where the boot with
    /// this id was.
    pub fn publish_as<S: Sampler + 'static>(&self, stats: VmStats<S>, boot_id: String) {
        let entry = Entry {
            isa: stats.isa,
            boot_id: boot_id.clone(),
            state: State::Live(Arc::new(Live::new(stats, boot_id))),
        };
        self.replace(entry);
    }

    /// Takes the last statistics of the machine and lets go of its vCPUs. To be
    /// called when the vCPU threads have ended; the statistics stay readable.
    pub fn retire(&self) {
        let last = match self.current().0 {
            State::Empty => return,
            State::Live(reader) => reader.read(),
            State::Last(snapshot) => Ok(ExitSnapshot::clone(&snapshot)),
        };
        self.keep(last.map(|snapshot| ExitSnapshot {
            ended: true,
            ..snapshot
        }));
    }

    /// The same for a machine that another one goes on from:
    /// [`carry_on`](Self::carry_on) follows.
    pub fn suspend(&self) {
        if let State::Live(reader) = self.current().0 {
            self.keep(reader.read());
        }
    }

    fn keep(&self, last: Result<ExitSnapshot, StatsError>) {
        let state = match last {
            Ok(snapshot) => State::Last(Arc::new(snapshot)),
            Err(error) => {
                log::error!("the last exit statistics are lost: {error}");
                State::Empty
            }
        };
        let mut entry = self.entry.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut entry.state, state);
        drop(entry);
        // Closing a machine's files takes a while: not under the lock.
        drop(old);
    }

    /// Forgets the statistics: the machine was deleted.
    pub fn clear(&self) {
        self.replace(Entry::empty());
    }

    /// The statistics as they are now, or as they were at the end.
    pub fn snapshot(&self, query: &Query) -> Result<ExitSnapshot, StatsError> {
        let (state, isa) = self.current();
        let snapshot = match state {
            State::Empty => return Err(StatsError::NotBooted),
            State::Live(reader) => reader.read()?,
            State::Last(snapshot) => ExitSnapshot::clone(&snapshot),
        };
        // A KVM that counts nothing does not change what the manual defines.
        if let (Some(reason), Some(isa)) = (query.reason, isa)
            && isa.table().status(reason) == ReasonStatus::Undefined
        {
            return Err(QueryError::UndefinedReason { reason, isa }.into());
        }
        Ok(snapshot.narrow(query)?)
    }

    /// Whether a vCPU sleeps in the kernel until an interrupt comes for it; nothing
    /// if there is none that runs, or the kernel does not tell.
    #[must_use]
    pub fn is_blocking(&self, vcpu: usize) -> Option<bool> {
        match self.current().0 {
            State::Live(reader) => reader.is_blocking(vcpu),
            State::Empty | State::Last(_) => None,
        }
    }

    fn current(&self) -> (State, Option<Isa>) {
        let entry = self.entry.read().unwrap_or_else(PoisonError::into_inner);
        (entry.state.clone(), entry.isa)
    }

    fn replace(&self, new: Entry) {
        let old = {
            let mut entry = self.entry.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *entry, new)
        };
        // As above.
        drop(old);
    }
}

impl Default for StatsHub {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
pub(crate) mod tests;
