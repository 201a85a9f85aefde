//! The memory map that the guest is told of, the same for both protocols.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestRam;
use crate::memory::layout::{EBDA_START, HIGH_RAM_START, RSDP_START};

/// What a range is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ram,
    Reserved,
}

impl Kind {
    /// The number that the BIOS call E820, and Xen after it, gives to it.
    pub(super) fn e820(self) -> u32 {
        match self {
            Kind::Ram => 1,
            Kind::Reserved => 2,
        }
    }
}

/// Ranges in address order: start, length, kind.
pub(super) fn ranges(ram: &GuestRam) -> Vec<(u64, u64, Kind)> {
    let mut map = vec![
        (0, EBDA_START, Kind::Ram),
        (RSDP_START, HIGH_RAM_START - RSDP_START, Kind::Reserved),
    ];
    for region in ram.iter() {
        let start = region.start_addr().0.max(HIGH_RAM_START);
        let end = region.start_addr().0 + region.len();
        if start >= end {
            continue;
        }
        match map.last_mut() {
            // Zones that follow each other are one range to the guest.
            Some((last, length, Kind::Ram)) if *last + *length == start => *length += end - start,
            _ => map.push((start, end - start, Kind::Ram)),
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Zone, allocate};

    #[test]
    fn zones_that_follow_each_other_are_one_range() {
        let zones: Vec<Zone> = [4096, (16 << 20) - 4096, 3 << 30]
            .into_iter()
            .map(|size| Zone {
                size,
                ..Zone::default()
            })
            .collect();
        let map = ranges(&allocate(&zones).unwrap());
        let low = 0xc000_0000 - (1 << 20);
        let expected = [(1 << 20, low, Kind::Ram), (1 << 32, 16 << 20, Kind::Ram)];
        assert_eq!(map[2..], expected);
    }
}
