//! Loading the kernel image and finding out how it wants to be entered.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{BootError, notes, owned};
use crate::host_file::{self, Purpose};
use crate::memory::GuestRam;
use crate::memory::layout::HIGH_RAM_START;

/// Bit of `xloadflags` that promises a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry point lies this far into the loaded image.
const ENTRY_64: u64 = 0x200;
/// First boot protocol with a 64-bit entry point and `init_size`.
const PROTOCOL_2_12: u16 = 0x20c;
/// Bytes of a version text that are looked at.
const MAX_VERSION: usize = 256;
/// What kernels take at most when their header does not say.
const CMDLINE_DEFAULT: usize = 2047;

/// How the kernel is told about the machine.
pub(super) enum Protocol {
    /// The zero page of the Linux boot protocol.
    Linux(Box<setup_header>),
    /// The start information of PVH.
    Pvh,
}

/// A kernel in guest memory.
pub struct Kernel {
    pub(super) protocol: Protocol,
    is_linux: bool,
    /// Guest address of the first instruction.
    pub(super) entry: u64,
    /// End of everything that the kernel overwrites while it starts.
    pub(super) end: u64,
}

impl Kernel {
    /// Whether it is Linux, which needs little more of a PC than its processor.
    /// Firmware, other systems and memory tests look for a PC's timer, clock and
    /// configuration ports.
    #[must_use]
    pub fn is_linux(&self) -> bool {
        self.is_linux
    }

    /// Longest command line, without the terminating zero.
    pub(super) fn cmdline_max(&self) -> usize {
        match &self.protocol {
            Protocol::Linux(header) => match header.cmdline_size {
                0 => 255,
                size => size as usize,
            },
            Protocol::Pvh => CMDLINE_DEFAULT,
        }
    }

    /// Highest address that the initial file system may take.
    pub(super) fn initramfs_limit(&self) -> u64 {
        match &self.protocol {
            Protocol::Linux(header) => u64::from(header.initrd_addr_max),
            Protocol::Pvh => u64::from(u32::MAX),
        }
    }
}

/// Loads the image at `path`, an ELF image or else a bzImage.
pub(super) fn load(ram: &GuestRam, path: &Path) -> Result<Kernel, BootError> {
    let mut file = host_file::open(path, Purpose::Content)
        .map_err(|source| BootError::OpenKernel(owned(path), source))?;
    let magic = {
        let mut magic = [0; 4];
        file.read_at(&mut magic, 0)
            .map_err(|source| BootError::OpenKernel(owned(path), source))?;
        magic
    };
    if magic == *b"\x7fELF" {
        load_elf(ram, path, &mut file)
    } else {
        load_bzimage(ram, path, &mut file)
    }
}

fn load_elf(ram: &GuestRam, path: &Path, file: &mut File) -> Result<Kernel, BootError> {
    let start = GuestAddress(HIGH_RAM_START);
    let loaded = Elf::load(ram, None, file, Some(start))
        .map_err(|source| BootError::LoadKernel(owned(path), source))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::KernelFormat(owned(path)));
    };
    if !ram.address_in_range(entry) {
        return Err(BootError::KernelTooBig(owned(path)));
    }
    Ok(Kernel {
        protocol: Protocol::Pvh,
        is_linux: notes::are_linux(file)
            .map_err(|source| BootError::OpenKernel(owned(path), source))?,
        entry: entry.0,
        end: loaded.kernel_end,
    })
}

fn load_bzimage(ram: &GuestRam, path: &Path, file: &mut File) -> Result<Kernel, BootError> {
    use linux_loader::loader::Error as LoaderError;
    use linux_loader::loader::bzimage::Error as BzError;

    let loaded =
        BzImage::load(ram, None, file, Some(GuestAddress(HIGH_RAM_START))).map_err(|source| {
            match source {
                LoaderError::Bzimage(BzError::InvalidBzImage | BzError::ReadBzImageHeader) => {
                    BootError::KernelFormat(owned(path))
                }
                source => BootError::LoadKernel(owned(path), source),
            }
        })?;
    let Some(header) = loaded.setup_header else {
        return Err(BootError::KernelFormat(owned(path)));
    };
    if header.version < PROTOCOL_2_12 || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry(owned(path)));
    }
    let is_linux = version(file, header.kernel_version)
        .map_err(|source| BootError::OpenKernel(owned(path), source))
        .map(|version| is_linux_version(&version))?;
    // The kernel unpacks itself at its preferred address, or where it was
    // loaded if that is higher, and needs `init_size` bytes there.
    let unpacked = header.pref_address.max(loaded.kernel_load.0);
    let end = unpacked
        .checked_add(u64::from(header.init_size))
        .map(|end| end.max(loaded.kernel_end))
        .ok_or_else(|| BootError::KernelTooBig(owned(path)))?;
    if !ram.check_range(
        GuestAddress(HIGH_RAM_START),
        (end - HIGH_RAM_START) as usize,
    ) {
        return Err(BootError::KernelTooBig(owned(path)));
    }
    Ok(Kernel {
        protocol: Protocol::Linux(Box::new(header)),
        is_linux,
        entry: loaded.kernel_load.0 + ENTRY_64,
        end,
    })
}

/// The text to which the header's `kernel_version` points, 0x200 bytes short of
/// it; empty if there is none.
fn version(file: &File, kernel_version: u16) -> io::Result<Vec<u8>> {
    if kernel_version == 0 {
        return Ok(Vec::new());
    }
    let mut text = [0; MAX_VERSION];
    let length = file.read_at(&mut text, u64::from(kernel_version) + 0x200)?;
    let text = &text[..length];
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(length);
    Ok(text[..end].to_vec())
}

/// Linux writes `RELEASE (WHO@WHERE) #BUILD WHEN`. Others use its header too:
/// memtest86+ writes its own name and version.
fn is_linux_version(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_digit) && text.windows(3).any(|part| part == b") #")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_is_told_from_others_by_its_version() {
        let debian = b"6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP Debian 6.1.1";
        assert!(is_linux_version(debian));
        for other in [&b""[..], b"Memtest86+ v6.10", b"6.1 of something else"] {
            assert!(!is_linux_version(other));
        }
    }
}
