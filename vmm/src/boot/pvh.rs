//! The start information of the PVH protocol (Xen's docs/misc/pvh.pandoc).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::{BootError, Placed, memory_map};
use crate::memory::GuestRam;
use crate::memory::layout::{CMDLINE_START, PVH_INFO_START, PVH_MEMMAP_START, PVH_MODULES_START};

const MAGIC: u32 = 0x336e_c578;
/// First version with a memory map.
const VERSION: u32 = 1;

/// Fills the start information, the module list and the memory map.
pub(super) fn write_parameters(
    ram: &GuestRam,
    initramfs: Option<Placed>,
    rsdp: u64,
) -> Result<(), BootError> {
    let map: Vec<hvm_memmap_table_entry> = memory_map::ranges(ram)
        .into_iter()
        .map(|(addr, size, kind)| hvm_memmap_table_entry {
            addr,
            size,
            type_: kind.e820(),
            reserved: 0,
        })
        .collect();
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: CMDLINE_START,
        rsdp_paddr: rsdp,
        memmap_paddr: PVH_MEMMAP_START,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let modules: Vec<hvm_modlist_entry> = initramfs
        .iter()
        .map(|initramfs| hvm_modlist_entry {
            paddr: initramfs.start,
            size: initramfs.length,
            ..Default::default()
        })
        .collect();
    if !modules.is_empty() {
        info.nr_modules = modules.len() as u32;
        info.modlist_paddr = PVH_MODULES_START;
    }
    let mut params = BootParams::new(&info, GuestAddress(PVH_INFO_START));
    params.set_sections(&map, GuestAddress(PVH_MEMMAP_START));
    if !modules.is_empty() {
        params.set_modules(&modules, GuestAddress(PVH_MODULES_START));
    }
    PvhBootConfigurator::write_bootparams(&params, ram).map_err(BootError::BootParams)
}
