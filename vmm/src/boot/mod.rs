//! Everything that is put into guest memory before the first instruction:
//! kernel, initial file system, command line, boot parameters, ACPI tables.
//!
//! Runs on the control thread, once per boot.

pub mod acpi;
mod initramfs;
mod kernel;
mod linux;
mod memory_map;
mod notes;
mod pvh;
pub mod registers;
mod reset_vector;
mod smbios;

use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestRam;
use crate::memory::layout::{CMDLINE_MAX, CMDLINE_START};
pub use kernel::Kernel;
use registers::Entry;
pub use reset_vector::map as map_reset_vector;
pub use smbios::{Identity, write_tables as write_smbios};

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// A bzImage, or an ELF image with a PVH entry point; firmware is the
    /// latter always.
    pub kernel: PathBuf,
    /// The file is firmware and not a kernel.
    pub firmware: bool,
    /// Initial file system.
    pub initramfs: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
}

/// Why the guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel's file.
    #[error("Cannot open the kernel {}", .0.display())]
    OpenKernel(PathBuf, #[source] std::io::Error),
    /// It is neither of the two formats.
    #[error("{} is neither a bzImage nor an ELF image with a PVH entry point", .0.display())]
    KernelFormat(PathBuf),
    /// Firmware of another kind.
    #[error(
        "{} is no firmware that can be booted: an ELF image with a PVH entry point is needed, \
         as rust-hypervisor-firmware or EDK2's CLOUDHV.fd are; flash images, as OVMF's are, \
         expect a PC's chipset",
        .0.display()
    )]
    FirmwareFormat(PathBuf),
    /// It cannot be loaded.
    #[error("Cannot load the kernel {}", .0.display())]
    LoadKernel(PathBuf, #[source] linux_loader::loader::Error),
    /// A bzImage that lacks what the 64-bit entry needs.
    #[error("The kernel {} has no 64-bit entry point", .0.display())]
    No64BitEntry(PathBuf),
    /// The kernel's program headers or its size do not fit the memory.
    #[error("The guest's memory is too small for the kernel {}", .0.display())]
    KernelTooBig(PathBuf),
    /// The initial file system's file.
    #[error("Cannot read the initramfs {}", .0.display())]
    ReadInitramfs(PathBuf, #[source] std::io::Error),
    /// There is nothing in it.
    #[error("The initramfs {} is empty", .0.display())]
    InitramfsEmpty(PathBuf),
    /// It does not fit.
    #[error("The initramfs {} does not fit into the guest's memory", .0.display())]
    InitramfsTooBig(PathBuf),
    /// Guest memory refused it.
    #[error("Cannot copy the initramfs {} into the guest's memory", .0.display())]
    CopyInitramfs(PathBuf, #[source] vm_memory::GuestMemoryError),
    /// The command line has no place.
    #[error("The kernel command line is {length} bytes long, {max} is the limit")]
    CmdlineTooLong {
        /// Its length.
        length: usize,
        /// The most that the kernel takes.
        max: usize,
    },
    /// The command line holds a zero byte.
    #[error("The kernel command line contains a zero byte")]
    CmdlineZero,
    /// Guest memory refused a structure.
    #[error("Cannot write {0} into the guest's memory")]
    Write(&'static str, #[source] vm_memory::GuestMemoryError),
    /// The boot parameters do not fit.
    #[error("Cannot write the boot parameters")]
    BootParams(#[source] linux_loader::configurator::Error),
    /// The tables outgrew their place.
    #[error("The ACPI tables take {0} bytes, too many for their place")]
    AcpiTooBig(usize),
    /// The names outgrew their place.
    #[error("The SMBIOS tables take {0} bytes, too many for their place: use shorter OEM strings")]
    SmbiosTooBig(usize),
}

/// A range of guest memory with something in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    start: u64,
    length: u64,
}

/// Loads the kernel or firmware itself. What it is decides on the machine that
/// it gets.
pub fn load_kernel(ram: &GuestRam, payload: &Payload) -> Result<Kernel, BootError> {
    let kernel = kernel::load(ram, &payload.kernel).map_err(|error| match error {
        BootError::KernelFormat(path) if payload.firmware => BootError::FirmwareFormat(path),
        error => error,
    })?;
    if payload.firmware && !matches!(kernel.protocol, kernel::Protocol::Pvh) {
        return Err(BootError::FirmwareFormat(owned(&payload.kernel)));
    }
    Ok(kernel)
}

/// Loads everything else and says where the first vCPU begins. The ACPI tables
/// are in place already, their root pointer at `rsdp`.
pub fn load_rest(
    ram: &GuestRam,
    payload: &Payload,
    kernel: &Kernel,
    rsdp: u64,
) -> Result<Entry, BootError> {
    let cmdline_max = kernel.cmdline_max().min(CMDLINE_MAX - 1);
    write_cmdline(ram, &payload.cmdline, cmdline_max)?;
    let initramfs = payload
        .initramfs
        .as_deref()
        .map(|path| initramfs::load(ram, path, kernel))
        .transpose()?;
    let entry = match &kernel.protocol {
        kernel::Protocol::Linux(header) => {
            linux::write_parameters(ram, header, initramfs, rsdp)?;
            Entry::Linux64 {
                address: kernel.entry,
            }
        }
        kernel::Protocol::Pvh => {
            pvh::write_parameters(ram, initramfs, rsdp)?;
            Entry::Pvh {
                address: kernel.entry,
            }
        }
    };
    registers::write_tables(ram)?;
    reset_vector::write(ram)?;
    Ok(entry)
}

fn write_cmdline(ram: &GuestRam, cmdline: &str, max: usize) -> Result<(), BootError> {
    if cmdline.len() > max {
        return Err(BootError::CmdlineTooLong {
            length: cmdline.len(),
            max,
        });
    }
    if cmdline.as_bytes().contains(&0) {
        return Err(BootError::CmdlineZero);
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    ram.write_slice(&bytes, GuestAddress(CMDLINE_START))
        .map_err(|source| BootError::Write("the command line", source))
}

fn owned(path: &Path) -> PathBuf {
    path.to_owned()
}

#[cfg(test)]
mod tests;
