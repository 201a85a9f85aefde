//! The counters of one vCPU.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::{ACCESS_KINDS, Access, RangeId, RangeMap, UserExitKind};

/// Accesses are 1, 2, 4 or 8 bytes wide.
const SIZES: usize = 4;
const CELLS_PER_RANGE: usize = ACCESS_KINDS * SIZES;

/// Exits and the host TSC ticks that user space spent on them.
#[derive(Debug, Default)]
pub(super) struct Cell {
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

    /// To be called before the cell's writer begins.
    pub(super) fn set(&self, exits: u64, ticks: u64) {
        self.exits.store(exits, Relaxed);
        self.ticks.store(ticks, Relaxed);
    }

    fn read(&self) -> (u64, u64) {
        (self.exits.load(Relaxed), self.ticks.load(Relaxed))
    }
}

/// Entries of the table of registers; a power of two.
const TABLE: usize = 512;
/// Entries in use at most, so that a search ends soon.
const MOST_REGISTERS: u32 = TABLE as u32 * 3 / 4;
/// Of these, addresses that no device has taken: a guest that walks through all
/// of them leaves room for the registers that exist.
const MOST_UNASSIGNED: u32 = 128;

/// One register, accessed in one direction and width.
#[derive(Debug, Default)]
struct Register {
    /// 0 while free, else [`tag`]; published last.
    tag: AtomicU32,
    register: AtomicU64,
    cell: Cell,
}

/// Range, kind and width in one word that is never 0.
fn tag(range: usize, kind: usize, size: usize) -> u32 {
    1 | (kind as u32) << 1 | (size as u32) << 3 | (range as u32) << 8
}

/// The place of a width in bytes.
fn width(size: u8) -> usize {
    (size.max(1).ilog2() as usize).min(SIZES - 1)
}

fn slot_of(tag: u32, register: u64) -> usize {
    // The golden ratio spreads neighbours; the upper bits are the mixed ones.
    let key = register ^ u64::from(tag) << 32;
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % TABLE
}

/// Counts the exits of one vCPU that reach user space.
///
/// A register has a counter of its own until [`UserExitRecorder::REGISTERS`] are
/// in use; accesses to further ones are counted by range. Both are bounded, so
/// nothing that a guest does takes more memory.
#[derive(Debug)]
pub struct UserExitRecorder {
    /// By kind, for kinds that are not accesses.
    kinds: [Cell; UserExitKind::ALL.len()],
    /// By register, kind and width: open addressing, entries are never removed.
    registers: Box<[Register]>,
    used: AtomicU32,
    used_unassigned: AtomicU32,
    /// Accesses to further registers by range, kind and width:
    /// `(range * ACCESS_KINDS + kind) * SIZES + size`. Grown in whole blocks by
    /// the writer, never moved, so that readers need no lock.
    further: [OnceLock<Box<[Cell]>>; BLOCKS],
}

/// Ranges whose cells are allocated together.
const RANGES_PER_BLOCK: usize = 16;
const BLOCKS: usize = RangeMap::CAPACITY / RANGES_PER_BLOCK;

impl UserExitRecorder {
    /// Registers, each in one direction and width, with counters of their own.
    pub const REGISTERS: usize = MOST_REGISTERS as usize;

    /// A recorder with all counters zero.
    pub fn new() -> UserExitRecorder {
        UserExitRecorder {
            kinds: Default::default(),
            registers: (0..TABLE).map(|_| Register::default()).collect(),
            used: AtomicU32::new(0),
            used_unassigned: AtomicU32::new(0),
            further: [const { OnceLock::new() }; BLOCKS],
        }
    }

    /// Books one exit: for an access the register it hit and its width in `size`
    /// bytes, for other kinds both are ignored. `ticks` is the time that user
    /// space took, in host TSC ticks. To be called by the vCPU's own thread.
    #[inline]
    pub fn record(&self, kind: UserExitKind, access: impl Into<Access>, size: u8, ticks: u64) {
        let cell = match kind.is_access() {
            true => self.access(kind, access.into(), size),
            false => self.kind(kind),
        };
        cell.add(ticks);
    }

    /// The counts of a kind that is no access.
    pub(super) fn kind(&self, kind: UserExitKind) -> &Cell {
        &self.kinds[kind as usize]
    }

    /// The counts of an access.
    #[inline]
    pub(super) fn access(&self, kind: UserExitKind, access: Access, size: u8) -> &Cell {
        let range = usize::from(access.range.0);
        let width = width(size);
        match self.find(
            tag(range, kind as usize, width),
            access.register,
            range == 0,
        ) {
            Some(register) => &register.cell,
            None => self.further(range, kind as usize, width),
        }
    }

    /// The counts of all registers of a range that have none of their own.
    pub(super) fn whole_range(&self, kind: UserExitKind, range: RangeId, size: u8) -> &Cell {
        self.further(usize::from(range.0), kind as usize, width(size))
    }

    /// The entry of a register, made if there is room for it.
    fn find(&self, tag: u32, register: u64, unassigned: bool) -> Option<&Register> {
        let mut place = slot_of(tag, register);
        // Some entries are always free, so the search ends.
        loop {
            let entry = &self.registers[place];
            match entry.tag.load(Relaxed) {
                0 => break,
                used if used == tag && entry.register.load(Relaxed) == register => {
                    return Some(entry);
                }
                _ => place = (place + 1) % TABLE,
            }
        }
        let used = self.used.load(Relaxed);
        let used_unassigned = self.used_unassigned.load(Relaxed);
        if used >= MOST_REGISTERS || unassigned && used_unassigned >= MOST_UNASSIGNED {
            return None;
        }
        self.used.store(used + 1, Relaxed);
        self.used_unassigned
            .store(used_unassigned + u32::from(unassigned), Relaxed);
        let entry = &self.registers[place];
        entry.register.store(register, Relaxed);
        // Pairs with the load in `read`: who sees the tag sees the register.
        entry.tag.store(tag, Release);
        Some(entry)
    }

    fn further(&self, range: usize, kind: usize, size: usize) -> &Cell {
        let block = self.further[range / RANGES_PER_BLOCK].get_or_init(|| {
            (0..RANGES_PER_BLOCK * CELLS_PER_RANGE)
                .map(|_| Cell::default())
                .collect()
        });
        &block[range % RANGES_PER_BLOCK * CELLS_PER_RANGE + kind * SIZES + size]
    }

    /// The counters so far, by kind and then by range, register and width; what
    /// never happened is left out.
    pub fn read(&self) -> Vec<UserExitCount> {
        let mut counts = Vec::new();
        let mut push = |kind: usize, access, cell: &Cell| {
            let (exits, ticks) = cell.read();
            if exits > 0 {
                counts.push(UserExitCount {
                    kind: UserExitKind::ALL[kind],
                    access,
                    exits,
                    ticks,
                });
            }
        };
        for entry in &self.registers {
            let tag = entry.tag.load(Acquire);
            if tag != 0 {
                let access = AccessKey {
                    range: (tag >> 8) as usize,
                    register: Some(entry.register.load(Relaxed)),
                    size: 1 << (tag >> 3 & 3),
                };
                push((tag >> 1 & 3) as usize, Some(access), &entry.cell);
            }
        }
        for (block_index, block) in self.further.iter().enumerate() {
            for (index, cell) in block.get().into_iter().flatten().enumerate() {
                let access = AccessKey {
                    range: block_index * RANGES_PER_BLOCK + index / CELLS_PER_RANGE,
                    register: None,
                    size: 1 << (index % SIZES),
                };
                push(index % CELLS_PER_RANGE / SIZES, Some(access), cell);
            }
        }
        for (kind, cell) in self.kinds.iter().enumerate() {
            push(kind, None, cell);
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

/// Which accesses a count is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccessKey {
    /// Index into [`RangeMap::ranges`].
    pub range: usize,
    /// [`Access::register`]; `None` stands for all registers of the range that
    /// have no counter of their own.
    pub register: Option<u64>,
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
