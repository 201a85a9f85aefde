//! Names for the ranges of addresses that devices serve.

use std::sync::{PoisonError, RwLock};

use serde::{Deserialize, Serialize};

/// The two address spaces in which devices are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressSpace {
    /// I/O ports.
    Port,
    /// Guest-physical memory.
    Mmio,
}

/// A registered device range. The default stands for every address that no
/// device has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeId(pub(super) u16);

/// A register that an access hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The range it lies in.
    pub range: RangeId,
    /// Its offset in the range; the address itself where no device answers.
    pub register: u64,
}

impl From<RangeId> for Access {
    fn from(range: RangeId) -> Access {
        Access { range, register: 0 }
    }
}

/// What is known of a registered range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeInfo {
    /// The device that serves it.
    pub device: String,
    /// First address, the latest one if the range was moved; `None` for the
    /// ranges that stand for addresses anywhere.
    pub base: Option<u64>,
    /// Length in bytes or ports.
    pub len: u64,
    /// Where the address lives.
    pub space: AddressSpace,
}

impl RangeInfo {
    /// Whether this is one of the two ranges that stand for addresses anywhere.
    fn is_anywhere(&self) -> bool {
        self.base.is_none()
    }
}

#[derive(Debug)]
struct Entry {
    info: RangeInfo,
    /// No device serves it at the moment.
    released: bool,
}

/// Names for [`RangeId`]s, shared by the buses (which register) and the readers.
///
/// Ranges are never forgotten, so that the counters of a device that was removed
/// stay readable. A range that a guest moves keeps its name, so that moving it
/// uses up nothing. A vCPU never takes the lock.
#[derive(Debug)]
pub struct RangeMap {
    ranges: RwLock<Vec<Entry>>,
}

/// The range that stands for devices beyond [`RangeMap::CAPACITY`].
pub(super) const OTHER: usize = 1;

impl RangeMap {
    /// Ranges with counters of their own, the two that stand for addresses
    /// anywhere included; later ones are counted together as `other devices`.
    pub const CAPACITY: usize = 1024;

    /// An empty map.
    pub fn new() -> RangeMap {
        let anywhere = |device: &str| Entry {
            info: RangeInfo {
                device: device.into(),
                base: None,
                len: 0,
                space: AddressSpace::Port,
            },
            released: false,
        };
        RangeMap {
            ranges: RwLock::new(vec![anywhere("unassigned"), anywhere("other devices")]),
        }
    }

    /// Names a range. The same device registering the same range again, after a
    /// reset for instance, goes on with the counters it had; so does a range
    /// that was [released](Self::release) and comes back elsewhere.
    pub fn register(&self, device: &str, base: u64, len: u64, space: AddressSpace) -> RangeId {
        let info = RangeInfo {
            device: device.into(),
            base: Some(base),
            len,
            space,
        };
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let moved = |entry: &Entry| {
            let old = &entry.info;
            entry.released
                && !old.is_anywhere()
                && (old.device.as_str(), old.len, old.space) == (device, len, space)
        };
        let known = ranges
            .iter()
            .position(|entry| entry.info == info)
            .or_else(|| ranges.iter().position(moved));
        let index = match known {
            Some(index) => {
                ranges[index] = Entry {
                    info,
                    released: false,
                };
                index
            }
            None if ranges.len() < Self::CAPACITY => {
                ranges.push(Entry {
                    info,
                    released: false,
                });
                ranges.len() - 1
            }
            None => OTHER,
        };
        RangeId(index as u16)
    }

    /// Says that no device serves the range any more.
    pub fn release(&self, id: RangeId) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = ranges.get_mut(usize::from(id.0)) {
            entry.released = !entry.info.is_anywhere();
        }
    }

    /// All ranges; the index is the id.
    pub fn ranges(&self) -> Vec<RangeInfo> {
        self.entries().into_iter().map(|(info, _)| info).collect()
    }

    /// The same, each with whether no device serves it.
    pub(super) fn entries(&self) -> Vec<(RangeInfo, bool)> {
        self.ranges
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|entry| (entry.info.clone(), entry.released))
            .collect()
    }
}

impl Default for RangeMap {
    fn default() -> Self {
        Self::new()
    }
}
