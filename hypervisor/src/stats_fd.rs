//! The reader of a vCPU's binary statistics.
//!
//! KVM describes its statistics in the file itself: a header, one descriptor
//! per statistic, then the data. Header and descriptors never change, so they
//! are read once; every sample after that is a single `pread` of the span that
//! holds the statistics of interest. The kernel copies it without a lock and
//! without disturbing the vCPU, so a sample may be taken at any time from any
//! thread.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use instrumentation::snapshot::{ReasonArrays, VcpuSample};
use instrumentation::table::STATS_SLOTS;

/// Why a vCPU's statistics cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The file cannot be opened or read.
    #[error("Cannot {0} the statistics file")]
    Io(&'static str, #[source] std::io::Error),
    /// The file does not describe itself in the form the kernel documents.
    #[error("The statistics file contradicts itself: {0}")]
    Layout(&'static str),
    /// The kernel does not offer KVM's own count of exits.
    #[error("The kernel's statistics lack the count of exits")]
    NoExits,
}

const HEADER_LEN: usize = 24;
const DESCRIPTOR_LEN: usize = 16;
const WORD: usize = 8;

// Bounds far above anything a kernel has; they keep a damaged header from
// asking for absurd allocations.
const MAX_NAME: usize = 256;
const MAX_DESCRIPTORS: usize = 4096;
const MAX_SPAN: usize = 1 << 20;

// Fields of a descriptor's flags.
const TYPE_MASK: u32 = 0xf;
const TYPE_CUMULATIVE: u32 = 0;
const TYPE_INSTANT: u32 = 1;
const TYPE_LINEAR_HIST: u32 = 3;

/// Opened statistics of one vCPU. Sampling needs `&self` only.
#[derive(Debug)]
pub struct StatsFd {
    file: File,
    /// Where the one read starts in the file.
    start: u64,
    /// How many bytes it takes.
    length: usize,
    layout: Layout,
    /// Where the kernel says whether the vCPU sleeps, in the file.
    blocking: Option<u64>,
}

/// Places of the statistics within the span, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    exits: usize,
    guest_cycles: Option<usize>,
    arrays: Option<ArrayPlaces>,
}

#[derive(Debug, PartialEq, Eq)]
struct ArrayPlaces {
    exits: Range<usize>,
    cycles: Range<usize>,
    blocked_cycles: Range<usize>,
    userspace_cycles: Range<usize>,
    preempted_cycles: Option<Range<usize>>,
}

/// One statistic as the kernel describes it; `offset` counts from the start of
/// the data.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Descriptor {
    name: String,
    kind: u32,
    size: usize,
    offset: usize,
    bucket_size: u32,
}

impl StatsFd {
    /// Reads the header and the descriptors of an open statistics file.
    pub(crate) fn from_file(file: File) -> Result<Self, StatsError> {
        let mut header = [0u8; HEADER_LEN];
        file.read_exact_at(&mut header, 0)
            .map_err(|source| StatsError::Io("read the header of", source))?;
        let field = |index: usize| u32_at(&header, index * 4) as usize;
        let (name_size, count) = (field(1), field(2));
        let (descriptors_at, data_at) = (field(4), field(5));
        if name_size == 0 || name_size > MAX_NAME {
            return Err(StatsError::Layout("the size of a name is out of range"));
        }
        if count > MAX_DESCRIPTORS {
            return Err(StatsError::Layout("too many descriptors"));
        }
        let mut raw = vec![0u8; count * (DESCRIPTOR_LEN + name_size)];
        file.read_exact_at(&mut raw, descriptors_at as u64)
            .map_err(|source| StatsError::Io("read the descriptors of", source))?;
        let descriptors: Vec<Descriptor> = raw
            .chunks_exact(DESCRIPTOR_LEN + name_size)
            .map(parse_descriptor)
            .collect();
        let (first, length, layout) = plan(&descriptors)?;
        let blocking = descriptors
            .iter()
            .find(|d| d.name == "blocking" && d.kind == TYPE_INSTANT && d.size == 1)
            .map(|d| (data_at + d.offset) as u64);
        Ok(StatsFd {
            file,
            start: (data_at + first) as u64,
            length,
            layout,
            blocking,
        })
    }

    /// Whether the kernel counts exits by reason.
    #[must_use]
    pub fn has_reasons(&self) -> bool {
        self.layout.arrays.is_some()
    }

    /// Whether the vCPU sleeps in the kernel until an interrupt comes for it; nothing
    /// where the kernel does not tell.
    #[must_use]
    pub fn is_blocking(&self) -> Option<bool> {
        let mut word = [0; WORD];
        self.file.read_exact_at(&mut word, self.blocking?).ok()?;
        Some(u64::from_le_bytes(word) != 0)
    }

    /// Reads the vCPU's counters as they are now.
    pub fn sample(&self) -> Result<VcpuSample, StatsError> {
        let mut data = vec![0u8; self.length];
        self.file
            .read_exact_at(&mut data, self.start)
            .map_err(|source| StatsError::Io("read the counters of", source))?;
        Ok(self.layout.extract(&data))
    }
}

impl Layout {
    /// Every place was checked to lie within the span when it was planned.
    fn extract(&self, data: &[u8]) -> VcpuSample {
        let array = |place: &Range<usize>| -> Vec<u64> {
            data[place.clone()]
                .chunks_exact(WORD)
                .map(|word| u64_at(word, 0))
                .collect()
        };
        VcpuSample {
            exits: u64_at(data, self.exits),
            guest_cycles: self.guest_cycles.map(|place| u64_at(data, place)),
            arrays: self.arrays.as_ref().map(|places| ReasonArrays {
                exits: array(&places.exits),
                cycles: array(&places.cycles),
                blocked_cycles: array(&places.blocked_cycles),
                userspace_cycles: array(&places.userspace_cycles),
                preempted_cycles: places
                    .preempted_cycles
                    .as_ref()
                    .map(&array)
                    .unwrap_or_default(),
            }),
        }
    }
}

fn parse_descriptor(raw: &[u8]) -> Descriptor {
    let name = &raw[DESCRIPTOR_LEN..];
    let end = name.iter().position(|&byte| byte == 0);
    let name = &name[..end.unwrap_or(name.len())];
    Descriptor {
        name: String::from_utf8_lossy(name).into_owned(),
        kind: u32_at(raw, 0) & TYPE_MASK,
        size: usize::from(u16::from_le_bytes([raw[6], raw[7]])),
        offset: u32_at(raw, 8) as usize,
        bucket_size: u32_at(raw, 12),
    }
}

/// Finds the statistics of interest and the smallest span that holds them:
/// its offset into the data, its length, and the places within it.
fn plan(descriptors: &[Descriptor]) -> Result<(usize, usize, Layout), StatsError> {
    let scalar = |name: &str| {
        descriptors
            .iter()
            .find(|d| d.name == name && d.kind == TYPE_CUMULATIVE && d.size == 1)
            .map(|d| d.offset)
    };
    let histogram = |name: &str| {
        descriptors
            .iter()
            .find(|d| {
                d.name == name
                    && d.kind == TYPE_LINEAR_HIST
                    && d.size >= STATS_SLOTS
                    && d.bucket_size == 1
            })
            .map(|d| d.offset..d.offset + d.size * WORD)
    };
    let exits = scalar("exits").ok_or(StatsError::NoExits)?;
    let guest_cycles = scalar("guest_cycles");
    // All four or none. A kernel that knows more reasons has more slots: those
    // belong to exits that this program has no name for. The fifth array came
    // with version 2 of the interface.
    let arrays = (|| {
        Some(ArrayPlaces {
            exits: histogram("exits_by_reason")?,
            cycles: histogram("exit_cycles_by_reason")?,
            blocked_cycles: histogram("exit_blocked_cycles_by_reason")?,
            userspace_cycles: histogram("exit_userspace_cycles_by_reason")?,
            preempted_cycles: histogram("exit_preempted_cycles_by_reason"),
        })
    })();

    let mut spans: Vec<Range<usize>> = std::iter::once(exits)
        .chain(guest_cycles)
        .map(|place| place..place + WORD)
        .collect();
    if let Some(places) = &arrays {
        spans.extend([
            places.exits.clone(),
            places.cycles.clone(),
            places.blocked_cycles.clone(),
            places.userspace_cycles.clone(),
        ]);
        spans.extend(places.preempted_cycles.clone());
    }
    let first = spans.iter().map(|span| span.start).min().unwrap_or(exits);
    let end = spans
        .iter()
        .map(|span| span.end)
        .max()
        .unwrap_or(exits + WORD);
    if end - first > MAX_SPAN {
        return Err(StatsError::Layout("the counters lie too far apart"));
    }
    let layout = Layout {
        exits: exits - first,
        guest_cycles: guest_cycles.map(|place| place - first),
        arrays: arrays.map(|places| {
            let within = |place: Range<usize>| place.start - first..place.end - first;
            ArrayPlaces {
                exits: within(places.exits),
                cycles: within(places.cycles),
                blocked_cycles: within(places.blocked_cycles),
                userspace_cycles: within(places.userspace_cycles),
                preempted_cycles: places.preempted_cycles.map(within),
            }
        }),
    };
    Ok((first, end - first, layout))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0u8; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0u8; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests;
