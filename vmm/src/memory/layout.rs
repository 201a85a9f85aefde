//! The guest's physical address map, in address order. Everything that has a
//! fixed place in the guest is named here and nowhere else.

/// Real-mode interrupt vectors and BIOS data start here; nothing of ours does.
pub const RAM_START: u64 = 0;

/// Global descriptor table of the first vCPU.
pub const GDT_START: u64 = 0x500;
/// An empty interrupt descriptor table, next to it.
pub const IDT_START: u64 = 0x540;

/// PVH: what the start information points to begins here.
pub const PVH_INFO_START: u64 = 0x6000;
/// PVH: descriptions of modules.
pub const PVH_MODULES_START: u64 = 0x6040;
/// PVH: memory map.
pub const PVH_MEMMAP_START: u64 = 0x7000;

/// Linux boot protocol: the zero page.
pub const ZERO_PAGE_START: u64 = 0x7000;

/// Identity-mapping page tables for 64-bit entry, three levels.
pub const PML4_START: u64 = 0x9000;
/// The second level.
pub const PDPT_START: u64 = 0xa000;
/// The third level, four pages for the first 4 GiB.
pub const PD_START: u64 = 0xb000;

/// The kernel's command line.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Room for it, the terminating zero included.
pub const CMDLINE_MAX: usize = 0x1_0000;

/// The extended BIOS data area, where conventional memory ends.
pub const EBDA_START: u64 = 0x9_fc00;

/// The root pointer of the ACPI tables, in the area that PC systems scan for
/// it, with the other tables behind it.
pub const RSDP_START: u64 = 0xe_0000;
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = 0xf_0000;

/// The entry point of the SMBIOS tables, which kernels look for from here on,
/// with the tables behind it.
pub const SMBIOS_START: u64 = 0xf_0000;
/// End of the room for them.
pub const SMBIOS_END: u64 = LOW_RESET_VECTOR;

/// Where real-mode code jumps to for a reset: FFFF:0000, the last 16 bytes
/// below 1 MiB.
pub const LOW_RESET_VECTOR: u64 = 0xf_fff0;

/// Kernels are loaded from here on.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest; devices live in the hole above.
pub const LOW_RAM_END: u64 = 0xc000_0000;

/// Registers of PCI devices.
pub const PCI_WINDOW_START: u64 = 0xc000_0000;
/// Where they end.
pub const PCI_WINDOW_END: u64 = 0xe800_0000;
/// PCI configuration space, memory-mapped: one bus.
pub const PCI_CONFIG_START: u64 = 0xe800_0000;
/// Length of it: 32 devices of 8 functions of 4 KiB.
pub const PCI_CONFIG_LENGTH: u64 = 1 << 20;

/// The I/O APIC's registers.
pub const IOAPIC_START: u32 = 0xfec0_0000;
/// Length of them.
pub const IOAPIC_LENGTH: u64 = 0x20;
/// The local APICs' registers.
pub const LAPIC_START: u32 = 0xfee0_0000;

/// The page with the address at which an x86 processor begins.
pub const RESET_VECTOR_PAGE: u64 = 0xffff_f000;

/// RAM goes on here.
pub const HIGH_RAM_4G: u64 = 0x1_0000_0000;

/// Ports of the i8042 keyboard controller.
pub const I8042_PORTS: (u16, u16) = (0x60, 5);
/// Ports of the clock: index and data.
pub const CMOS_PORTS: (u16, u16) = (0x70, 2);
/// System control port A, one bit of which resets the machine.
pub const SYSTEM_CONTROL_PORT: (u16, u16) = (0x92, 1);
/// Ports of the first serial port.
pub const SERIAL_PORTS: (u16, u16) = (0x3f8, 8);
/// Ports of the power registers: sleep control, sleep status, reset.
pub const POWER_PORTS: (u16, u16) = (0x600, 3);
/// Ports of the power management timer, where firmware looks for it.
pub const PM_TIMER_PORTS: (u16, u16) = (0x608, 4);
/// Ports of the registers that tell of devices that come and go.
pub const HOTPLUG_PORTS: (u16, u16) = (0x610, 16);
/// Ports of PCI configuration space: address and data.
pub const PCI_CONFIG_PORTS: (u16, u16) = (0xcf8, 8);
/// The reset control register, a byte in the middle of them.
pub const RESET_CONTROL_PORT: (u16, u16) = (0xcf9, 1);

/// Interrupt of the I/O APIC's first pin.
pub const IOAPIC_FIRST_GSI: u32 = 4;
/// Pins of the I/O APIC: as many as there are lines, for a guest visits each
/// of them often.
pub const IOAPIC_PINS: u32 = 2;

/// Interrupt of the first serial port.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt of the registers that tell of devices that come and go.
pub const HOTPLUG_GSI: u32 = 5;

/// Where `size` bytes of RAM lie that follow the first `start` bytes of it:
/// (guest address, length), two if the hole is between.
#[must_use]
pub fn ram_part(start: u64, size: u64) -> Vec<(u64, u64)> {
    let low = LOW_RAM_END.saturating_sub(start).min(size);
    let above = HIGH_RAM_4G + (start + low).saturating_sub(LOW_RAM_END);
    [(RAM_START + start, low), (above, size - low)]
        .into_iter()
        .filter(|&(_, length)| length > 0)
        .collect()
}

// Whatever is placed by hand must not overlap.
const _: () = {
    assert!(GDT_START + 5 * 8 <= IDT_START);
    assert!(PVH_INFO_START + 56 <= PVH_MODULES_START);
    assert!(PVH_MODULES_START < PVH_MEMMAP_START);
    assert!(PVH_MEMMAP_START + 0x1000 <= PML4_START);
    assert!(ZERO_PAGE_START + 0x1000 <= PML4_START);
    assert!(PD_START + 4 * 0x1000 <= CMDLINE_START);
    assert!(CMDLINE_START + CMDLINE_MAX as u64 <= EBDA_START);
    assert!(RSDP_START < ACPI_END);
    assert!(SERIAL_GSI >= IOAPIC_FIRST_GSI && SERIAL_GSI < IOAPIC_FIRST_GSI + IOAPIC_PINS);
    assert!(HOTPLUG_GSI >= IOAPIC_FIRST_GSI && HOTPLUG_GSI < IOAPIC_FIRST_GSI + IOAPIC_PINS);
    assert!(LOW_RAM_END <= PCI_WINDOW_START);
    assert!(PCI_WINDOW_END <= PCI_CONFIG_START);
    assert!(PCI_CONFIG_START + PCI_CONFIG_LENGTH <= IOAPIC_START as u64);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_up_to_the_hole_is_one_range() {
        assert_eq!(ram_part(0, 256 << 20), [(0, 256 << 20)]);
        assert_eq!(ram_part(0, LOW_RAM_END), [(0, LOW_RAM_END)]);
    }

    #[test]
    fn parts_lie_one_behind_the_other_around_the_hole() {
        let gib = 1 << 30;
        assert_eq!(ram_part(0, gib), [(0, gib)]);
        assert_eq!(ram_part(gib, 2 * gib), [(gib, 2 * gib)]);
        let split = [(2 * gib, gib), (4 * gib, 3 * gib)];
        assert_eq!(ram_part(2 * gib, 4 * gib), split);
        assert_eq!(ram_part(6 * gib, gib), [(7 * gib, gib)]);
        assert_eq!(ram_part(3 * gib, gib), [(4 * gib, gib)]);
    }

    #[test]
    fn memory_past_the_hole_goes_on_at_4_gib_and_none_is_lost() {
        for size in [LOW_RAM_END + 4096, 4 << 30, 6 << 30, 1 << 40] {
            let ranges = ram_part(0, size);
            assert_eq!(ranges.len(), 2);
            assert_eq!(ranges[1].0, HIGH_RAM_4G);
            assert_eq!(ranges.iter().map(|range| range.1).sum::<u64>(), size);
        }
    }
}
