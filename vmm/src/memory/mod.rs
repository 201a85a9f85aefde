//! Guest memory: where it lies in the guest ([`layout`]), how the host backs
//! it, and how the rest of the VMM reads and writes it.
//!
//! Built by the control thread; afterwards any thread may use it.

mod iovecs;
pub mod layout;
mod mapping;
mod ring;
mod transfer;
mod window;

use std::io;
use std::path::PathBuf;

use hypervisor::Vm;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollection};

pub use iovecs::{IoVecs, IoVecsError};
pub use mapping::{Backing, RamRegion};
pub use ring::{IoRing, RingCompletion, RingOperation};
pub use transfer::{AlignedBuffer, GuestBuffers, OutOfRange};
pub use window::ReadOnlyWindow;

/// The guest's RAM. Clones share the mappings.
pub type GuestRam = GuestRegionCollection<RamRegion>;

/// The hypervisor's memory slots: RAM takes the first ones, then come the
/// windows.
pub const MAX_RAM_SLOTS: u32 = 62;
/// This one is for the page with the reset vector.
pub const RESET_VECTOR_SLOT: u32 = MAX_RAM_SLOTS;
/// This one is for the I/O APIC.
pub const IOAPIC_SLOT: u32 = RESET_VECTOR_SLOT + 1;
/// This one is for the PCI configuration space.
pub const PCI_CONFIG_SLOT: u32 = IOAPIC_SLOT + 1;
/// From here on one for the registers of each PCI device.
pub const PCI_DEVICE_SLOTS: u32 = PCI_CONFIG_SLOT + 1;

/// Why guest memory cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host does not give the memory.
    #[error("Cannot map {0} MiB of guest memory")]
    Map(u64, #[source] std::io::Error),
    /// The pool of huge pages has too few left.
    #[error(
        "The host has no {0} MiB of guest memory left as huge pages of that size: /proc/meminfo tells what there is, vm.nr_hugepages reserves some"
    )]
    HugePages(u64, #[source] std::io::Error),
    /// No such node, or it gives nothing.
    #[error("Cannot take {0} MiB of guest memory from the host's NUMA node {1}")]
    Node(u64, u32, #[source] std::io::Error),
    /// The file of a zone.
    #[error("Cannot keep {0} MiB of guest memory in {1}")]
    File(u64, PathBuf, #[source] std::io::Error),
    /// The ranges overlap or are empty.
    #[error("Cannot arrange guest memory")]
    Arrange(#[source] vm_memory::GuestRegionCollectionError),
    /// The host gives no memory for registers that the guest reads.
    #[error("Cannot map memory for the guest to read")]
    Window(#[source] std::io::Error),
    /// The hypervisor does not take it.
    #[error("Cannot give the guest its memory")]
    Hypervisor(#[source] hypervisor::Error),
}

/// A part of the guest's memory that is backed in one way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    /// Bytes.
    pub size: u64,
    /// How the host backs it.
    pub backing: Backing,
}

/// Maps the zones one behind the other, around the hole below 4 GiB.
pub fn allocate(zones: &[Zone]) -> Result<GuestRam, MemoryError> {
    let mut regions = Vec::new();
    let mut start = 0;
    for Zone { size, backing } in zones {
        let failed = |source| failure(*size, backing, source);
        let file = mapping::open_file(*size, backing).map_err(failed)?;
        let mut offset = 0;
        for (guest, length) in layout::ram_part(start, *size) {
            let bytes = usize::try_from(length)
                .map_err(|_| failed(std::io::Error::from(std::io::ErrorKind::OutOfMemory)))?;
            let source = file.as_ref().map(|file| (file, offset));
            regions.push(RamRegion::map(guest, bytes, source, backing).map_err(failed)?);
            offset += length;
        }
        start += size;
    }
    GuestRam::from_regions(regions).map_err(MemoryError::Arrange)
}

/// What is to blame when memory with this backing is not there.
fn failure(size: u64, backing: &Backing, source: io::Error) -> MemoryError {
    let size = size >> 20;
    match (&backing.file, backing.host_numa_node) {
        (Some(file), _) => MemoryError::File(size, file.clone(), source),
        (None, Some(node)) => MemoryError::Node(size, node, source),
        (None, None) if backing.hugepages => MemoryError::HugePages(size, source),
        (None, None) => MemoryError::Map(size, source),
    }
}

/// Shows all of `ram` to the guest of `vm`. The machine that owns both stops
/// its vCPUs before it lets go of the memory.
pub fn attach(vm: &dyn Vm, ram: &GuestRam) -> Result<(), MemoryError> {
    for (slot, region) in ram.iter().enumerate() {
        let (host, length) = region.host_range();
        // SAFETY:
        // - The region keeps its mapping, and `vm::Machine`, which owns `ram`,
        //   joins every vCPU thread before its fields are dropped, so no guest
        //   code runs on an unmapped range.
        // - This process accesses the range through volatile slices only.
        unsafe { vm.map_memory(slot as u32, region.start_addr().0, length as u64, host) }
            .map_err(MemoryError::Hypervisor)?;
    }
    Ok(())
}

/// Gives the pages from `guest` on back to the host; the guest reads zeroes
/// there afterwards. The range lies within one region.
pub fn discard(ram: &GuestRam, guest: GuestAddress, length: usize) -> io::Result<()> {
    let Some((region, offset)) = ram.to_region_addr(guest) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    region.discard(offset.0, length)
}

/// Memory without anything special.
#[cfg(test)]
pub fn plain(size: u64) -> GuestRam {
    let backing = Backing::default();
    allocate(&[Zone { size, backing }]).unwrap()
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_above_4_gib_is_reachable_and_the_hole_is_not() {
        let ram = plain(layout::LOW_RAM_END + (64 << 20));
        let high = GuestAddress(layout::HIGH_RAM_4G + 4096);
        ram.write_obj(0xabcd_u16, high).unwrap();
        assert_eq!(ram.read_obj::<u16>(high).unwrap(), 0xabcd);
        assert!(
            ram.write_obj(1u8, GuestAddress(layout::LOW_RAM_END))
                .is_err()
        );
    }
}
