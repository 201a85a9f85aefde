//! The distribution's QEMU, for a host to run as another VMM.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::guest_image::libraries;
use crate::peer::{PROGRAM, WHOLE_PROGRAM};

/// What it loads into a guest: the firmware of its smallest machine, and what
/// boots an ELF kernel or a bzImage from there.
const FIRMWARE: [&str; 3] = ["bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin"];

/// The same of the build with PCI devices.
const WHOLE_FIRMWARE: [&str; 4] = [
    "bios-microvm.bin",
    "pvh.bin",
    "linuxboot_dma.bin",
    "kvmvapic.bin",
];

/// The program with all that it needs, by path in the host. The paths are
/// those of the distribution.
pub fn files() -> Result<Vec<(String, PathBuf)>> {
    packed(PROGRAM, &FIRMWARE)
}

/// The same of the build that has PCI devices.
pub fn whole_files() -> Result<Vec<(String, PathBuf)>> {
    packed(WHOLE_PROGRAM, &WHOLE_FIRMWARE)
}

fn packed(program: &str, firmware: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut files = vec![PathBuf::from(program)];
    files.extend(libraries(Path::new(program))?);
    files.extend(
        firmware
            .iter()
            .map(|name| Path::new("/usr/share/qemu").join(name)),
    );
    Ok(files
        .into_iter()
        .map(|path| (path.to_string_lossy().into_owned(), path))
        .collect())
}
