//! Loading the initial file system.

use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use super::kernel::Kernel;
use super::{BootError, Placed, owned};
use crate::host_file::{self, Purpose};
use crate::memory::GuestRam;
use crate::memory::layout::LOW_RAM_END;
use vm_memory::GuestMemoryBackend;

const PAGE: u64 = 4096;

/// Copies the file to the top of low memory, as far from the kernel as it
/// gets.
pub(super) fn load(ram: &GuestRam, path: &Path, kernel: &Kernel) -> Result<Placed, BootError> {
    let failed = |source| BootError::ReadInitramfs(owned(path), source);
    let mut file = host_file::open(path, Purpose::Content).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    if length == 0 {
        return Err(BootError::InitramfsEmpty(owned(path)));
    }
    let limit = kernel.initramfs_limit().saturating_add(1);
    let low_end = ram
        .find_region(GuestAddress(0))
        .map_or(0, |region| {
            use vm_memory::GuestMemoryRegion;
            region.len()
        })
        .min(LOW_RAM_END);
    let top = low_end.min(limit);
    let start = top
        .checked_sub(length)
        .map(|start| start & !(PAGE - 1))
        .filter(|&start| start >= kernel.end)
        .ok_or_else(|| BootError::InitramfsTooBig(owned(path)))?;
    ram.read_exact_volatile_from(GuestAddress(start), &mut file, length as usize)
        .map_err(|source| BootError::CopyInitramfs(owned(path), source))?;
    Ok(Placed { start, length })
}
