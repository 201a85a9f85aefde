//! Loading the kernel image and finding out how it wants to be entered.

use std::fs::File;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{BootError, owned};
use crate::host_file::{self, Purpose};
use crate::memory::GuestRam;
use crate::memory::layout::HIGH_RAM_START;

/// Bit of `xloadflags` that promises a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry point lies this far into the loaded image.
const ENTRY_64: u64 = 0x200;
/// First boot protocol with a 64-bit entry point and `init_size`.
const PROTOCOL_2_12: u16 = 0x20c;
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
pub(super) struct Kernel {
    pub(super) protocol: Protocol,
    /// Guest address of the first instruction.
    pub(super) entry: u64,
    /// End of everything that the kernel overwrites while it starts.
    pub(super) end: u64,
}

impl Kernel {
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
        use std::os::unix::fs::FileExt;
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
        entry: loaded.kernel_load.0 + ENTRY_64,
        end,
    })
}
