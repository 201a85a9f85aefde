//! Recorders and the names of their ranges as they are saved, so that a machine
//! that goes on elsewhere goes on counting. A state may come from a file: what
//! makes no sense in it is refused.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ranges::AddressSpace;
use super::{Access, AccessKey, RangeId, RangeMap, UserExitCount, UserExitKind, UserExitRecorder};

/// A range of a [`RangeMap`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeState {
    /// The device that serves it.
    pub device: String,
    /// First address.
    pub base: u64,
    /// Length in bytes or ports.
    pub length: u64,
    /// Where the address lives.
    pub space: AddressSpace,
    /// No device serves it at the moment.
    pub released: bool,
}

/// One count of a [`UserExitRecorder`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountState {
    /// Why `KVM_RUN` returned.
    pub kind: UserExitKind,
    /// For accesses: number of the range, register if it has a count of its own,
    /// and width in bytes.
    pub access: Option<(u16, Option<u64>, u8)>,
    /// How often.
    pub exits: u64,
    /// Host TSC ticks in user space.
    pub ticks: u64,
}

/// Why a saved recorder cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecorderStateError {
    /// More ranges than a map has.
    Ranges(usize),
    /// A range twice, or one that stands for others.
    Range(String),
    /// A count of a range that there is not.
    NoRange(u16),
    /// A count whose kind and access contradict each other.
    Count(&'static str),
}

impl fmt::Display for RecorderStateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ranges(number) => write!(f, "{number} ranges are more than there can be"),
            Self::Range(device) => {
                write!(f, "a range of {device} does not come back as what it was")
            }
            Self::NoRange(range) => {
                write!(f, "a count names the range {range}, of which there is none")
            }
            Self::Count(kind) => {
                write!(
                    f,
                    "a count of {kind} does not go with what it says of an access"
                )
            }
        }
    }
}

impl std::error::Error for RecorderStateError {}

impl RangeMap {
    /// The ranges with a name, in their order.
    pub fn save(&self) -> Vec<RangeState> {
        self.entries()
            .into_iter()
            .filter_map(|(info, released)| {
                Some(RangeState {
                    device: info.device,
                    base: info.base?,
                    length: info.len,
                    space: info.space,
                    released,
                })
            })
            .collect()
    }

    /// A map with these ranges. Devices that register them again find them.
    pub fn restore(ranges: &[RangeState]) -> Result<RangeMap, RecorderStateError> {
        let map = RangeMap::new();
        let anywhere = map.ranges().len();
        if ranges.len() > RangeMap::CAPACITY - anywhere {
            return Err(RecorderStateError::Ranges(ranges.len()));
        }
        for (index, range) in ranges.iter().enumerate() {
            let id = map.register(&range.device, range.base, range.length, range.space);
            if usize::from(id.0) != anywhere + index {
                return Err(RecorderStateError::Range(range.device.clone()));
            }
        }
        // Only now: a range that is free would be taken for the next one like it.
        for (index, _) in ranges
            .iter()
            .enumerate()
            .filter(|(_, range)| range.released)
        {
            map.release(RangeId((anywhere + index) as u16));
        }
        Ok(map)
    }
}

impl UserExitRecorder {
    /// The counts.
    pub fn save(&self) -> Vec<CountState> {
        let state = |count: UserExitCount| CountState {
            kind: count.kind,
            access: count.access.map(|access: AccessKey| {
                // A map has far fewer ranges.
                (access.range as u16, access.register, access.size)
            }),
            exits: count.exits,
            ticks: count.ticks,
        };
        self.read().into_iter().map(state).collect()
    }

    /// A recorder that goes on from these counts, which are of `ranges`.
    pub fn restore(
        counts: &[CountState],
        ranges: &RangeMap,
    ) -> Result<UserExitRecorder, RecorderStateError> {
        let recorder = UserExitRecorder::new();
        let number = ranges.ranges().len();
        for count in counts {
            let cell = match (count.kind.is_access(), count.access) {
                (false, None) => recorder.kind(count.kind),
                (true, Some((range, register, size))) if matches!(size, 1 | 2 | 4 | 8) => {
                    if usize::from(range) >= number {
                        return Err(RecorderStateError::NoRange(range));
                    }
                    let range = RangeId(range);
                    match register {
                        Some(register) => {
                            recorder.access(count.kind, Access { range, register }, size)
                        }
                        None => recorder.whole_range(count.kind, range, size),
                    }
                }
                _ => return Err(RecorderStateError::Count(count.kind.as_str())),
            };
            cell.set(count.exits, count.ticks);
        }
        Ok(recorder)
    }
}
