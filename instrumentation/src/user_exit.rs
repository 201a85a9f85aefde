//! The VMM's own side of the accounting: exits that reach user space, by kind
//! and by the device range and access size behind them.
//!
//! A vCPU thread owns one [`UserExitRecorder`] and is its only writer; readers
//! take no lock and may look at any time. Counters only grow, so a reader that
//! wants a rate subtracts two readings.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::table::{ExitReason, Isa};

/// Why `KVM_RUN` returned to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserExitKind {
    /// Port read.
    IoIn,
    /// Port write.
    IoOut,
    /// Read of memory-mapped I/O.
    MmioRead,
    /// Write of memory-mapped I/O.
    MmioWrite,
    /// HLT, where the interrupt controller is not in the kernel.
    Hlt,
    /// Triple fault.
    Shutdown,
    /// `KVM_EXIT_SYSTEM_EVENT`.
    SystemEvent,
    /// The VM entry failed.
    FailEntry,
    /// KVM gave up, for instance on an instruction that it cannot emulate.
    InternalError,
    /// End of interrupt that a user-space I/O APIC has to hear of.
    IoapicEoi,
    /// No exit of the guest's: a signal took the thread out of `KVM_RUN`.
    Interrupted,
    /// Anything else.
    Other,
}

impl UserExitKind {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [UserExitKind; 12] = [
        UserExitKind::IoIn,
        UserExitKind::IoOut,
        UserExitKind::MmioRead,
        UserExitKind::MmioWrite,
        UserExitKind::Hlt,
        UserExitKind::Shutdown,
        UserExitKind::SystemEvent,
        UserExitKind::FailEntry,
        UserExitKind::InternalError,
        UserExitKind::IoapicEoi,
        UserExitKind::Interrupted,
        UserExitKind::Other,
    ];

    /// The name in the REST body.
    pub fn as_str(self) -> &'static str {
        match self {
            UserExitKind::IoIn => "io_in",
            UserExitKind::IoOut => "io_out",
            UserExitKind::MmioRead => "mmio_read",
            UserExitKind::MmioWrite => "mmio_write",
            UserExitKind::Hlt => "hlt",
            UserExitKind::Shutdown => "shutdown",
            UserExitKind::SystemEvent => "system_event",
            UserExitKind::FailEntry => "fail_entry",
            UserExitKind::InternalError => "internal_error",
            UserExitKind::IoapicEoi => "ioapic_eoi",
            UserExitKind::Interrupted => "interrupted",
            UserExitKind::Other => "other",
        }
    }

    /// The kinds in which exits of a reason reach user space: ports by the I/O
    /// instruction's, memory-mapped I/O by faults in the nested tables.
    pub fn behind(isa: Isa, reason: ExitReason) -> &'static [UserExitKind] {
        match (isa, reason.0) {
            (Isa::Vmx, 30) | (Isa::Svm, 0x7b) => &[UserExitKind::IoIn, UserExitKind::IoOut],
            (Isa::Vmx, 48 | 49) | (Isa::Svm, 0x400) => {
                &[UserExitKind::MmioRead, UserExitKind::MmioWrite]
            }
            _ => &[],
        }
    }

    /// Whether a device range and a size belong to it.
    pub fn is_access(self) -> bool {
        (self as usize) < ACCESS_KINDS
    }
}

/// The first four kinds are accesses to a device.
const ACCESS_KINDS: usize = 4;
/// Accesses are 1, 2, 4 or 8 bytes wide.
const SIZES: usize = 4;
const CELLS_PER_RANGE: usize = ACCESS_KINDS * SIZES;

/// The two address spaces in which devices are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSpace {
    /// I/O ports.
    Port,
    /// Guest-physical memory.
    Mmio,
}

/// A registered device range. The default stands for every address that no
/// device has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeId(u16);

/// What is known of a registered range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeInfo {
    /// The device that serves it.
    pub device: String,
    /// First address; `None` for the range that stands for all unassigned ones.
    pub base: Option<u64>,
    /// Length in bytes or ports.
    pub len: u64,
    /// Where the address lives.
    pub space: AddressSpace,
}

/// Names for [`RangeId`]s, shared by the buses (which register) and the readers.
///
/// Ranges are never forgotten, so that the figures of a device that was removed
/// stay readable. A vCPU never takes its lock.
#[derive(Debug)]
pub struct RangeMap {
    ranges: RwLock<Vec<RangeInfo>>,
}

impl RangeMap {
    /// Ranges with figures of their own; later ones are counted as unassigned.
    pub const CAPACITY: usize = 1024;

    /// An empty map.
    pub fn new() -> RangeMap {
        RangeMap {
            ranges: RwLock::new(vec![RangeInfo {
                device: "unassigned".into(),
                base: None,
                len: 0,
                space: AddressSpace::Port,
            }]),
        }
    }

    /// Names a range. The same device registering the same range again, after a
    /// reset for instance, goes on with the figures it had.
    pub fn register(&self, device: &str, base: u64, len: u64, space: AddressSpace) -> RangeId {
        let info = RangeInfo {
            device: device.into(),
            base: Some(base),
            len,
            space,
        };
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let index = match ranges.iter().position(|range| *range == info) {
            Some(index) => index,
            None if ranges.len() < Self::CAPACITY => {
                ranges.push(info);
                ranges.len() - 1
            }
            None => 0,
        };
        RangeId(index as u16)
    }

    /// All ranges; the index is the id.
    pub fn ranges(&self) -> Vec<RangeInfo> {
        self.ranges
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Default for RangeMap {
    fn default() -> Self {
        Self::new()
    }
}

/// Exits and the host TSC ticks that user space spent on them.
#[derive(Debug, Default)]
struct Cell {
    exits: AtomicU64,
    ticks: AtomicU64,
}

impl Cell {
    /// One writer, so a load and a store do what a locked add would.
    fn add(&self, ticks: u64) {
        self.exits.store(self.exits.load(Relaxed) + 1, Relaxed);
        self.ticks
            .store(self.ticks.load(Relaxed).wrapping_add(ticks), Relaxed);
    }

    fn read(&self) -> (u64, u64) {
        (self.exits.load(Relaxed), self.ticks.load(Relaxed))
    }
}

/// Counts the exits of one vCPU that reach user space.
#[derive(Debug)]
pub struct UserExitRecorder {
    /// By kind, for kinds that are not accesses.
    kinds: [Cell; UserExitKind::ALL.len()],
    /// By range, kind and size: `(range * ACCESS_KINDS + kind) * SIZES + size`.
    /// Grown in whole blocks by the writer, never moved, so that readers need
    /// no lock.
    accesses: [std::sync::OnceLock<Box<[Cell]>>; BLOCKS],
}

/// Ranges whose cells are allocated together.
const RANGES_PER_BLOCK: usize = 16;
const BLOCKS: usize = RangeMap::CAPACITY / RANGES_PER_BLOCK;

impl UserExitRecorder {
    /// A recorder with all figures zero.
    pub fn new() -> UserExitRecorder {
        UserExitRecorder {
            kinds: Default::default(),
            accesses: [const { std::sync::OnceLock::new() }; BLOCKS],
        }
    }

    /// Books one exit: for an access the range it hit and its width in `size`
    /// bytes, for other kinds both are ignored. `ticks` is the time that user
    /// space took, in host TSC ticks. To be called by the vCPU's own thread.
    #[inline]
    pub fn record(&self, kind: UserExitKind, range: RangeId, size: u8, ticks: u64) {
        if !kind.is_access() {
            self.kinds[kind as usize].add(ticks);
            return;
        }
        let range = usize::from(range.0);
        let block = self.accesses[range / RANGES_PER_BLOCK].get_or_init(|| {
            (0..RANGES_PER_BLOCK * CELLS_PER_RANGE)
                .map(|_| Cell::default())
                .collect()
        });
        let size = (size.max(1).ilog2() as usize).min(SIZES - 1);
        let index = range % RANGES_PER_BLOCK * CELLS_PER_RANGE + kind as usize * SIZES + size;
        block[index].add(ticks);
    }

    /// The figures so far, by kind and then by range and size; what never
    /// happened is left out.
    pub fn read(&self) -> Vec<UserExitCount> {
        let mut counts = Vec::new();
        for (block_index, block) in self.accesses.iter().enumerate() {
            let Some(block) = block.get() else { continue };
            for (index, cell) in block.iter().enumerate() {
                let (exits, ticks) = cell.read();
                if exits > 0 {
                    counts.push(UserExitCount {
                        kind: UserExitKind::ALL[index % CELLS_PER_RANGE / SIZES],
                        access: Some(AccessKey {
                            range: block_index * RANGES_PER_BLOCK + index / CELLS_PER_RANGE,
                            size: 1 << (index % SIZES),
                        }),
                        exits,
                        ticks,
                    });
                }
            }
        }
        for (kind, cell) in UserExitKind::ALL.into_iter().zip(&self.kinds) {
            let (exits, ticks) = cell.read();
            if exits > 0 {
                counts.push(UserExitCount {
                    kind,
                    access: None,
                    exits,
                    ticks,
                });
            }
        }
        counts.sort_by_key(|count| (count.kind, count.access));
        counts
    }
}

impl Default for UserExitRecorder {
    fn default() -> Self {
        Self::new()
    }
}

/// Which access a count is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccessKey {
    /// Index into [`RangeMap::ranges`].
    pub range: usize,
    /// Width of the access in bytes.
    pub size: u8,
}

/// One row of a recorder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserExitCount {
    /// Why `KVM_RUN` returned.
    pub kind: UserExitKind,
    /// The access, for kinds that are one.
    pub access: Option<AccessKey>,
    /// How often.
    pub exits: u64,
    /// Host TSC ticks in user space.
    pub ticks: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_access_moves_its_own_count_and_no_other() {
        let map = RangeMap::new();
        let serial = map.register("serial", 0x3f8, 8, AddressSpace::Port);
        let late = (0..40)
            .map(|n| map.register("disk", n << 12, 0x1000, AddressSpace::Mmio))
            .next_back()
            .unwrap();
        for range in [RangeId::default(), serial, late] {
            for (kind_index, kind) in UserExitKind::ALL.into_iter().take(4).enumerate() {
                for size in [1u8, 2, 4, 8] {
                    let recorder = UserExitRecorder::new();
                    recorder.record(kind, range, size, 7);
                    recorder.record(kind, range, size, 8);
                    let access = Some(AccessKey {
                        range: usize::from(range.0),
                        size,
                    });
                    assert_eq!(
                        recorder.read(),
                        [UserExitCount {
                            kind: UserExitKind::ALL[kind_index],
                            access,
                            exits: 2,
                            ticks: 15
                        }]
                    );
                }
            }
        }
    }

    #[test]
    fn kinds_that_are_no_access_have_no_range() {
        for kind in UserExitKind::ALL.into_iter().skip(4) {
            let recorder = UserExitRecorder::new();
            recorder.record(kind, RangeId(3), 4, 5);
            let [count] = &recorder.read()[..] else {
                panic!("one row")
            };
            assert_eq!((count.kind, count.access, count.exits), (kind, None, 1));
            assert_eq!(
                serde_json::to_string(&kind).unwrap(),
                format!("\"{}\"", kind.as_str())
            );
        }
    }

    #[test]
    fn a_range_registered_again_keeps_its_id() {
        let map = RangeMap::new();
        let first = map.register("serial", 0x3f8, 8, AddressSpace::Port);
        assert_ne!(first, RangeId::default());
        assert_eq!(map.register("serial", 0x3f8, 8, AddressSpace::Port), first);
        assert_ne!(map.register("serial", 0x3f8, 8, AddressSpace::Mmio), first);
    }

    #[test]
    fn ranges_past_the_capacity_count_as_unassigned() {
        let map = RangeMap::new();
        for n in 0..RangeMap::CAPACITY as u64 {
            map.register("disk", n, 1, AddressSpace::Mmio);
        }
        assert_eq!(
            map.register("late", 0, 1, AddressSpace::Mmio),
            RangeId::default()
        );
    }
}
