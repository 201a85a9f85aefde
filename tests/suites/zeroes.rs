//! What no program of busybox's does: zeroes on a disk that are not written.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, fallocate};

/// Asks the kernel for zeroes on a disk; `free` lets the space go.
pub fn write(disk: &Path, offset: u64, length: u64, free: bool) -> Result<()> {
    let how = match free {
        true => FallocateFlags::PUNCH_HOLE,
        false => FallocateFlags::ZERO_RANGE,
    };
    let file = File::options()
        .write(true)
        .open(disk)
        .with_context(|| format!("Cannot open {}", disk.display()))?;
    fallocate(&file, how | FallocateFlags::KEEP_SIZE, offset, length)
        .context("The disk does not write zeroes")
}
