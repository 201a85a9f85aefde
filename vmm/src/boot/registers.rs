//! The state in which the first vCPU enters the kernel, and the tables that
//! this state points to.

use hypervisor::x86::{DescriptorTable, Registers, Segment, SpecialRegisters};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::GuestRam;
use crate::memory::layout::{
    GDT_START, IDT_START, PD_START, PDPT_START, PML4_START, PVH_INFO_START, ZERO_PAGE_START,
};

/// Where and in which mode the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode, the first 4 GiB mapped to themselves, RSI at the zero
    /// page.
    Linux64 {
        /// First instruction.
        address: u64,
    },
    /// 32-bit protected mode without paging, EBX at the start information.
    Pvh {
        /// First instruction.
        address: u64,
    },
}

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

const PTE_PRESENT: u64 = 1 << 0;
const PTE_WRITABLE: u64 = 1 << 1;
const PTE_LARGE: u64 = 1 << 7;

// Segment types of the architecture's manuals.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_TSS: u8 = 0xb;

// Selectors as the Linux boot protocol wants them.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

fn flat(selector: u16, type_: u8, long: bool) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
    }
}

fn task_state() -> Segment {
    Segment {
        base: 0,
        limit: 0x67,
        selector: BOOT_TSS,
        type_: TYPE_TSS,
        present: 1,
        s: 0,
        ..Default::default()
    }
}

/// The descriptor in the form in which it lies in memory.
fn descriptor(segment: &Segment) -> u64 {
    let limit = u64::from(if segment.g != 0 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

impl Entry {
    /// The registers of the first vCPU.
    #[must_use]
    pub fn registers(self) -> (Registers, SpecialRegisters) {
        let long = matches!(self, Entry::Linux64 { .. });
        let mut special = SpecialRegisters {
            cs: flat(BOOT_CS, TYPE_CODE, long),
            ds: flat(BOOT_DS, TYPE_DATA, false),
            tr: task_state(),
            gdt: DescriptorTable {
                base: GDT_START,
                limit: 5 * 8 - 1,
            },
            idt: DescriptorTable {
                base: IDT_START,
                limit: 7,
            },
            cr0: CR0_PE | CR0_ET,
            ..Default::default()
        };
        special.es = special.ds;
        special.fs = special.ds;
        special.gs = special.ds;
        special.ss = special.ds;
        special.ldt.unusable = 1;
        let mut general = Registers {
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        };
        match self {
            Entry::Linux64 { address } => {
                general.rip = address;
                general.rsi = ZERO_PAGE_START;
                special.cr0 |= CR0_PG;
                special.cr3 = PML4_START;
                special.cr4 = CR4_PAE;
                special.efer = EFER_LME | EFER_LMA;
            }
            Entry::Pvh { address } => {
                general.rip = address;
                general.rbx = PVH_INFO_START;
            }
        }
        (general, special)
    }
}

/// Writes descriptor and page tables, the same for every entry: a kernel that
/// does not use them overwrites them.
pub(super) fn write_tables(ram: &GuestRam) -> Result<(), BootError> {
    let failed = |source| BootError::Write("the start-up tables", source);
    let gdt = [
        0,
        0,
        descriptor(&flat(BOOT_CS, TYPE_CODE, true)),
        descriptor(&flat(BOOT_DS, TYPE_DATA, false)),
        descriptor(&task_state()),
    ];
    for (index, entry) in gdt.iter().enumerate() {
        ram.write_obj(*entry, GuestAddress(GDT_START + 8 * index as u64))
            .map_err(failed)?;
    }
    ram.write_obj(
        PDPT_START | PTE_PRESENT | PTE_WRITABLE,
        GuestAddress(PML4_START),
    )
    .map_err(failed)?;
    for gib in 0..4u64 {
        let table = PD_START + gib * 0x1000;
        ram.write_obj(
            table | PTE_PRESENT | PTE_WRITABLE,
            GuestAddress(PDPT_START + gib * 8),
        )
        .map_err(failed)?;
        for index in 0..512u64 {
            let page = (gib << 30) | (index << 21);
            ram.write_obj(
                page | PTE_PRESENT | PTE_WRITABLE | PTE_LARGE,
                GuestAddress(table + index * 8),
            )
            .map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_manuals() {
        assert_eq!(
            descriptor(&flat(BOOT_CS, TYPE_CODE, true)),
            0x00af_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&flat(BOOT_CS, TYPE_CODE, false)),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&flat(BOOT_DS, TYPE_DATA, false)),
            0x00cf_9300_0000_ffff
        );
        assert_eq!(descriptor(&task_state()), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn pvh_enters_without_paging_and_linux_in_long_mode() {
        let (general, special) = Entry::Pvh {
            address: 0x100_0000,
        }
        .registers();
        assert_eq!((general.rip, general.rbx), (0x100_0000, PVH_INFO_START));
        assert_eq!(
            (special.cr0, special.efer, special.cs.l, special.cs.db),
            (0x11, 0, 0, 1)
        );
        let (general, special) = Entry::Linux64 { address: 0x10_0200 }.registers();
        assert_eq!((general.rip, general.rsi), (0x10_0200, ZERO_PAGE_START));
        assert_eq!(
            (special.cr3, special.cr4, special.efer),
            (PML4_START, 0x20, 0x500)
        );
        assert_eq!((special.cs.l, special.cs.db), (1, 0));
    }
}
