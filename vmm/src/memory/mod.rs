//! Guest memory: where it lies in the guest ([`layout`]), how the host backs
//! it, and how the rest of the VMM reads and writes it.
//!
//! Built by the control thread; afterwards any thread may use it.

pub mod contents;
mod iovecs;
pub mod layout;
mod mapping;
mod ring;
mod transfer;
mod window;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use hypervisor::Vm;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollection, MemoryRegionAddress,
};

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
    /// Memory that cannot be the file's own pages.
    #[error(
        "Memory that is shared, made of huge pages or kept in a file of its own cannot be restored on demand: it has to be copied"
    )]
    OnDemand,
    /// Its content does not come out of the file.
    #[error("The guest's memory cannot be restored")]
    Restore(#[source] io::Error),
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
    map(zones, None)
}

/// How memory comes out of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreMode {
    /// All of it is read before the guest goes on.
    Copy,
    /// The memory is the file's own pages until the guest changes them. The file
    /// must stay as it is for as long as the memory is there.
    OnDemand,
}

/// Maps the zones with the [`contents`] of a file in them.
pub fn restore(zones: &[Zone], file: &File, mode: RestoreMode) -> Result<GuestRam, MemoryError> {
    match mode {
        RestoreMode::Copy => {
            let ram = allocate(zones)?;
            // A file of somebody's may have something in it already.
            if zones.iter().any(|zone| zone.backing.file.is_some()) {
                ram.iter()
                    .try_for_each(clear)
                    .map_err(MemoryError::Restore)?;
            }
            contents::load(&ram, file).map_err(MemoryError::Restore)?;
            Ok(ram)
        }
        RestoreMode::OnDemand => {
            let plain = |Zone { backing, .. }: &Zone| {
                !backing.shared && !backing.hugepages && backing.file.is_none()
            };
            if !zones.iter().all(plain) {
                return Err(MemoryError::OnDemand);
            }
            let ram = map(zones, Some(file))?;
            contents::check_length(file, &contents::regions(&ram)).map_err(MemoryError::Restore)?;
            Ok(ram)
        }
    }
}

/// Makes a region all zeroes.
fn clear(region: &RamRegion) -> io::Result<()> {
    let length = region.host_range().1;
    if region.discard(0, length).is_ok() {
        return Ok(());
    }
    // A file that has no holes, or one that only shows through.
    let zeroes = [0; 1 << 16];
    let mut done = 0;
    while done < length {
        let part = (length - done).min(zeroes.len());
        let slice = region.get_slice(MemoryRegionAddress(done as u64), part);
        slice.map_err(io::Error::other)?.copy_from(&zeroes[..part]);
        done += part;
    }
    Ok(())
}

/// Maps the zones, on a file that holds the [`contents`] of all of them if there is
/// one.
fn map(zones: &[Zone], content: Option<&File>) -> Result<GuestRam, MemoryError> {
    let mut regions = Vec::new();
    let mut start = 0;
    for Zone { size, backing } in zones {
        let failed = |source| failure(*size, backing, source);
        let own = match content {
            Some(_) => None,
            None => mapping::open_file(*size, backing).map_err(failed)?,
        };
        let (file, mut offset) = match content {
            Some(_) => (content, start),
            None => (own.as_ref(), 0),
        };
        for (guest, length) in layout::ram_part(start, *size) {
            let bytes = usize::try_from(length)
                .map_err(|_| failed(std::io::Error::from(std::io::ErrorKind::OutOfMemory)))?;
            let source = file.map(|file| (file, offset));
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
    fn restored_memory_is_what_was_saved_whatever_backs_it() {
        let folder = tempfile::tempdir().unwrap();
        let size = 4 << 20;
        let saved = plain(size);
        saved.write_obj(0x5eed_u16, GuestAddress(4098)).unwrap();
        let file = tempfile::tempfile().unwrap();
        contents::save(&saved, &file).unwrap();
        let zone = |backing| [Zone { size, backing }];
        let check = |ram: &GuestRam| {
            let mut bytes = vec![0; size as usize];
            ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            let others = bytes.iter().filter(|&&byte| byte != 0).count();
            assert_eq!((others, &bytes[4098..4100]), (2, &[0xed, 0x5e][..]));
        };
        for shared in [false, true] {
            let path = folder.path().join("memory");
            std::fs::write(&path, vec![7; size as usize]).unwrap();
            for backing in [
                Backing {
                    shared,
                    ..Backing::default()
                },
                Backing {
                    shared,
                    file: Some(path),
                    ..Backing::default()
                },
            ] {
                let on_demand = !shared && backing.file.is_none();
                check(&restore(&zone(backing.clone()), &file, RestoreMode::Copy).unwrap());
                match restore(&zone(backing), &file, RestoreMode::OnDemand) {
                    Ok(ram) if on_demand => {
                        check(&ram);
                        ram.write_obj(1_u8, GuestAddress(0)).unwrap();
                    }
                    Err(MemoryError::OnDemand) if !on_demand => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        // What a guest writes stays its own.
        check(&restore(&zone(Backing::default()), &file, RestoreMode::Copy).unwrap());
    }

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
