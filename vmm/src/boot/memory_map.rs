//! The memory map that the guest is told of, the same for both protocols.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestRam;
use crate::memory::layout::{ACPI_END, EBDA_START, HIGH_RAM_START, RSDP_START};

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
        (RSDP_START, ACPI_END - RSDP_START, Kind::Reserved),
    ];
    for region in ram.iter() {
        let start = region.start_addr().0.max(HIGH_RAM_START);
        let end = region.start_addr().0 + region.len();
        if start < end {
            map.push((start, end - start, Kind::Ram));
        }
    }
    map
}
