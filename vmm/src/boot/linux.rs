//! The zero page of the Linux boot protocol (Documentation/arch/x86/boot.rst).

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::GuestAddress;

use super::{BootError, Placed, memory_map};
use crate::memory::GuestRam;
use crate::memory::layout::{CMDLINE_START, ZERO_PAGE_START};

/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Fills the zero page. The header comes from the image, so all that the
/// kernel says about itself is kept, `cmdline_size` among it: that is how much
/// the kernel takes, not how long the command line is. memtest86+ reads so many
/// bytes, and parses an option only once it has read the zero after it.
pub(super) fn write_parameters(
    ram: &GuestRam,
    header: &setup_header,
    initramfs: Option<Placed>,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: *header,
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE_START as u32;
    if let Some(initramfs) = initramfs {
        // Both lie below the header's initrd_addr_max, which has 32 bits.
        params.hdr.ramdisk_image = initramfs.start as u32;
        params.hdr.ramdisk_size = initramfs.length as u32;
    }
    let map = memory_map::ranges(ram);
    for (entry, &(addr, size, kind)) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr,
            size,
            r#type: kind.e820(),
        };
    }
    params.e820_entries = map.len() as u8;
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE_START));
    LinuxBootConfigurator::write_bootparams(&params, ram).map_err(BootError::BootParams)
}
