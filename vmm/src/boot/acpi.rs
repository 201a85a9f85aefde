//! The ACPI tables: which processors and devices there are, how to power off and
//! reset, and what the guest need not look for.
//!
//! The machine is hardware-reduced (ACPI 6.5, section 4.1): there are no PM1
//! registers, 8259s, 8254, VGA and, as far as the tables say, neither a keyboard
//! controller nor a CMOS clock. Linux probes none of them then, which saves it
//! several hundred exits at boot. Two of them exist all the same, for who does
//! not ask the tables: the reset command of the i8042, and the clock on machines
//! that boot something other than Linux. So does the power management timer,
//! which the tables name there although hardware-reduced machines need none.

mod hotplug;
mod pci;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::devices::{RESET_VALUE, S5_SLEEP_TYPE};
use crate::memory::GuestRam;
use crate::memory::layout::{
    ACPI_END, IOAPIC_FIRST_GSI, IOAPIC_START, LAPIC_START, PM_TIMER_PORTS, POWER_PORTS, RSDP_START,
    SERIAL_GSI, SERIAL_PORTS,
};

const OEM_ID: [u8; 6] = *b"EXITVM";
const OEM_TABLE: [u8; 8] = *b"EXITVMM ";
const OEM_REVISION: u32 = 1;

// Bits of the FADT's boot architecture flags (ACPI 6.5, table 5.11).
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

// The MADT's structure of a local x2APIC (table 5.32).
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_LENGTH: u8 = 16;
const LOCAL_APIC_ENABLED: u32 = 1;
/// The highest id of the structure with 8 bits; 255 means all local APICs.
const MAX_XAPIC_ID: u8 = 254;

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiParams {
    /// The local APIC of each vCPU.
    pub apic_ids: Vec<u32>,
    /// There is a serial port.
    pub serial: bool,
    /// There is a power management timer: who is not told of it measures time
    /// with an 8254.
    pub pm_timer: bool,
}

/// Writes all tables; says where the root pointer is.
pub fn write_tables(ram: &GuestRam, platform: &AcpiParams) -> Result<u64, BootError> {
    let mut area = Area {
        start: RSDP_START,
        bytes: vec![0; Rsdp::len()],
    };
    let dsdt = area.push(dsdt(platform).as_slice());
    let fadt = area.push(&bytes_of(&fadt(dsdt, platform.pm_timer)));
    let madt = area.push(madt(&platform.apic_ids).as_slice());
    let mcfg = area.push(&bytes_of(&pci::mcfg()));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = area.push(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    if area.bytes.len() as u64 > ACPI_END - RSDP_START {
        return Err(BootError::AcpiTooBig(area.bytes.len()));
    }
    ram.write_slice(&area.bytes, GuestAddress(RSDP_START))
        .map_err(|source| BootError::Write("the ACPI tables", source))?;
    Ok(RSDP_START)
}

/// Tables one after the other.
struct Area {
    start: u64,
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table, aligned; says where it lies in the guest.
    fn push(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let address = self.start + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn power_register(index: u16) -> GAS {
    let port = POWER_PORTS.0 + index;
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        port.into(),
    )
}

fn fadt(dsdt: u64, pm_timer: bool) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.sleep_control_reg = power_register(0);
    fadt.sleep_status_reg = power_register(1);
    fadt.reset_reg = power_register(2);
    fadt.reset_value = RESET_VALUE;
    if pm_timer {
        let (port, length) = PM_TIMER_PORTS;
        fadt.pm_tmr_blk = u32::from(port).into();
        fadt.pm_tmr_len = length as u8;
        fadt.x_pm_tmr_blk = GAS::new(
            AddressSpace::SystemIo,
            32,
            0,
            AccessSize::DwordAccess,
            port.into(),
        );
    }
    fadt.finalize()
}

fn madt(apic_ids: &[u32]) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM_ID, OEM_TABLE, OEM_REVISION);
    // The local APICs' address. No flags: there are no 8259s.
    madt.write_u32(36, LAPIC_START);
    let mut structures: Vec<u8> = (0u32..)
        .zip(apic_ids)
        .flat_map(|(vcpu, &apic_id)| local_apic(vcpu, apic_id))
        .collect();
    structures.extend(bytes_of(&IoApic::new(0, IOAPIC_START, IOAPIC_FIRST_GSI)));
    madt.append_slice(&structures);
    madt
}

/// The structure of a local APIC: the older one where the id fits, as the
/// standard wants it (ACPI 6.5, section 5.2.12.12).
fn local_apic(vcpu: u32, apic_id: u32) -> Vec<u8> {
    if let (Ok(uid), Ok(id @ ..=MAX_XAPIC_ID)) = (vcpu.try_into(), apic_id.try_into()) {
        return bytes_of(&ProcessorLocalApic::new(uid, id, EnabledStatus::Enabled));
    }
    let mut x2apic = vec![LOCAL_X2APIC, LOCAL_X2APIC_LENGTH, 0, 0];
    for word in [apic_id, LOCAL_APIC_ENABLED, vcpu] {
        x2apic.extend(word.to_le_bytes());
    }
    x2apic
}

fn dsdt(platform: &AcpiParams) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE, OEM_REVISION);
    let mut body = Vec::new();
    aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![&S5_SLEEP_TYPE, &aml::ZERO, &aml::ZERO, &aml::ZERO]),
    )
    .to_aml_bytes(&mut body);
    let mut devices: Vec<&dyn Aml> = vec![&pci::HostBridge, &hotplug::Events];
    if platform.serial {
        devices.push(&SerialDevice);
    }
    aml::Scope::new("_SB_".into(), devices).to_aml_bytes(&mut body);
    dsdt.append_slice(&body);
    dsdt
}

struct SerialDevice;

impl Aml for SerialDevice {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let (base, length) = SERIAL_PORTS;
        aml::Device::new(
            "COM1".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
                &aml::Name::new("_UID".into(), &aml::ZERO),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::Interrupt::new(true, true, false, false, SERIAL_GSI),
                        &aml::IO::new(base, base, 1, length as u8),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::plain;

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_reached_from_the_root_and_sums_to_zero() {
        let ram = plain(16 << 20);
        let platform = AcpiParams {
            apic_ids: (0..64).collect(),
            serial: true,
            pm_timer: false,
        };
        let rsdp = write_tables(&ram, &platform).unwrap();
        let table = |address: u64, length: usize| {
            let mut bytes = vec![0; length];
            ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            assert_eq!(
                bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
                0
            );
            bytes
        };
        let sized = |address: u64| {
            let length: u32 = ram.read_obj(GuestAddress(address + 4)).unwrap();
            table(address, length as usize)
        };
        let root = table(rsdp, 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        let xsdt = sized(u64_at(&root, 24));
        assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 36 + 3 * 8));
        let fadt = sized(u64_at(&xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!(&sized(u64_at(&fadt, 140))[..4], b"DSDT");
        let madt = sized(u64_at(&xsdt, 44));
        assert_eq!((&madt[..4], madt.len()), (&b"APIC"[..], 44 + 64 * 8 + 12));
        let mcfg = sized(u64_at(&xsdt, 52));
        assert_eq!((&mcfg[..4], mcfg.len()), (&b"MCFG"[..], 44 + 16));
        // No 8259s.
        assert_eq!(madt[40], 0);
    }

    #[test]
    fn local_apics_with_wide_ids_have_structures_of_their_own() {
        let ids: Vec<u32> = (0..300).collect();
        let table = madt(&ids);
        let table = table.as_slice();
        assert_eq!(table.len(), 44 + 255 * 8 + 45 * 16 + 12);
        assert_eq!(
            table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        assert_eq!(table[36..40], LAPIC_START.to_le_bytes());
        let last_old = &table[44 + 254 * 8..][..8];
        assert_eq!(last_old, [0, 8, 254, 254, 1, 0, 0, 0]);
        let first_new = &table[44 + 255 * 8..][..16];
        assert_eq!(
            first_new,
            [9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0]
        );
    }

    #[test]
    fn timer_is_named_where_there_is_one() {
        for (pm_timer, port, length) in [(true, 0x608, 4), (false, 0, 0)] {
            let table = bytes_of(&fadt(0, pm_timer));
            assert_eq!(table[76..80], u32::to_le_bytes(port));
            assert_eq!(table[91], length);
            assert_eq!(u64_at(&table, 212), u64::from(port));
        }
    }
}
