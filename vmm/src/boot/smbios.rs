//! SMBIOS tables: what the machine is called (DMTF DSP0134, version 3.2).
//!
//! Structures are as cloud images expect them of Cloud Hypervisor, whose names
//! are the defaults, with processors and memory besides for inventories.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::GuestRam;
use crate::memory::layout::{LOW_RAM_END, SMBIOS_END, SMBIOS_START, ram_part};

const MANUFACTURER: &str = "Cloud Hypervisor";
const PRODUCT: &str = "cloud-hypervisor";
const BIOS_VERSION: &str = "0";

/// The entry point; the structures come after it.
const ENTRY_LENGTH: usize = 24;
/// They begin on a boundary, which the standard asks for.
const TABLE_START: u64 = SMBIOS_START + 32;

// Values of single fields, by the standard's names.
const BIOS_PCI_SUPPORTED: u64 = 1 << 7;
const BIOS_VIRTUAL_MACHINE: u8 = 1 << 4;
const WAKE_UP_POWER_SWITCH: u8 = 6;
const CHASSIS_OTHER: u8 = 1;
const STATE_SAFE: u8 = 3;
const SECURITY_NONE: u8 = 3;
const PROCESSOR_CENTRAL: u8 = 3;
const PROCESSOR_FAMILY_UNKNOWN: u8 = 2;
const PROCESSOR_POPULATED_ENABLED: u8 = 0x41;
const UPGRADE_OTHER: u8 = 1;
const NO_CACHE: u16 = 0xffff;
const PROCESSOR_64_BIT: u16 = 1 << 2;
const LOCATION_OTHER: u8 = 1;
const USE_SYSTEM_MEMORY: u8 = 3;
const CORRECTION_MULTI_BIT: u8 = 6;
const FORM_DIMM: u8 = 9;
const MEMORY_RAM: u8 = 7;
const DETAIL_OTHER: u16 = 1 << 1;
const SEE_EXTENDED: u32 = 0x8000_0000;
const NONE: u16 = 0xfffe;

/// What the machine is called; defaults where nothing is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The system's serial number.
    pub serial_number: Option<String>,
    /// The system's UUID, in the order in which it is written.
    pub uuid: Option<[u8; 16]>,
    /// The system's manufacturer.
    pub manufacturer: Option<String>,
    /// The system's product name.
    pub product_name: Option<String>,
    /// The system's version.
    pub version: Option<String>,
    /// The product family.
    pub family: Option<String>,
    /// The stock keeping unit.
    pub sku_number: Option<String>,
    /// The chassis's asset tag.
    pub asset_tag: Option<String>,
    /// Free strings, which cloud images read settings from.
    pub oem_strings: Vec<String>,
}

/// Writes the tables to where kernels look for them.
pub fn write_tables(
    ram: &GuestRam,
    identity: &Identity,
    vcpus: u32,
    memory: u64,
) -> Result<(), BootError> {
    let table = table(identity, vcpus, memory);
    let room = SMBIOS_END - TABLE_START;
    if table.len() as u64 > room {
        return Err(BootError::SmbiosTooBig(table.len()));
    }
    for (bytes, address) in [
        (&entry(table.len() as u32)[..], SMBIOS_START),
        (&table, TABLE_START),
    ] {
        ram.write_slice(bytes, GuestAddress(address))
            .map_err(|source| BootError::Write("the SMBIOS tables", source))?;
    }
    Ok(())
}

/// The 64-bit entry point.
fn entry(length: u32) -> [u8; ENTRY_LENGTH] {
    let mut entry = [0; ENTRY_LENGTH];
    entry[..5].copy_from_slice(b"_SM3_");
    entry[6] = ENTRY_LENGTH as u8;
    // Version 3.2, revision of the entry point 1.
    (entry[7], entry[8], entry[10]) = (3, 2, 1);
    entry[12..16].copy_from_slice(&length.to_le_bytes());
    entry[16..].copy_from_slice(&TABLE_START.to_le_bytes());
    let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    entry[5] = sum.wrapping_neg();
    entry
}

/// A structure in the making: fields first, then the strings that they number.
struct Structure<'a> {
    fields: Vec<u8>,
    strings: Vec<&'a str>,
}

impl<'a> Structure<'a> {
    fn new(kind: u8, handle: u16) -> Self {
        let mut fields = vec![kind, 0];
        fields.extend(handle.to_le_bytes());
        Structure {
            fields,
            strings: Vec::new(),
        }
    }

    fn byte(mut self, value: u8) -> Self {
        self.fields.push(value);
        self
    }

    fn word(mut self, value: u16) -> Self {
        self.fields.extend(value.to_le_bytes());
        self
    }

    fn double(mut self, value: u32) -> Self {
        self.fields.extend(value.to_le_bytes());
        self
    }

    fn quad(mut self, value: u64) -> Self {
        self.fields.extend(value.to_le_bytes());
        self
    }

    /// The number of a string; 0 for none.
    fn text(mut self, text: Option<&'a str>) -> Self {
        let number = match text {
            Some(text) => {
                self.strings.push(text);
                self.strings.len() as u8
            }
            None => 0,
        };
        self.byte(number)
    }

    fn finish(mut self, table: &mut Vec<u8>) {
        // The largest structure here has less than a hundred bytes.
        self.fields[1] = self.fields.len() as u8;
        table.extend(self.fields);
        for text in &self.strings {
            table.extend(text.as_bytes());
            table.push(0);
        }
        if self.strings.is_empty() {
            table.push(0);
        }
        table.push(0);
    }
}

// Handles: the type, then a number within it.
const fn handle(kind: u8, index: u8) -> u16 {
    (kind as u16) << 8 | index as u16
}

fn table(identity: &Identity, vcpus: u32, memory: u64) -> Vec<u8> {
    let mut table = Vec::new();
    firmware_and_system(identity, &mut table);
    processor(vcpus, &mut table);
    if !identity.oem_strings.is_empty() {
        let mut oem = Structure::new(11, handle(11, 0));
        oem.strings = identity.oem_strings.iter().map(String::as_str).collect();
        // `config` allows no more strings than a byte numbers.
        let count = oem.strings.len() as u8;
        oem.byte(count).finish(&mut table);
    }
    memory_structures(memory, &mut table);
    // System boot information: no errors.
    Structure::new(32, handle(32, 0))
        .double(0)
        .word(0)
        .byte(0)
        .finish(&mut table);
    Structure::new(127, handle(127, 0)).finish(&mut table);
    table
}

fn firmware_and_system(identity: &Identity, table: &mut Vec<u8>) {
    Structure::new(0, handle(0, 0))
        .text(Some(PRODUCT))
        .text(Some(BIOS_VERSION))
        .word(0) // starting segment: none
        .text(None) // no release date
        .byte(0) // size of the ROM
        .quad(BIOS_PCI_SUPPORTED)
        .byte(0)
        .byte(BIOS_VIRTUAL_MACHINE)
        .double(0xffff_ffff) // no releases of firmware or controller
        .word(0)
        .finish(table);
    let manufacturer = identity.manufacturer.as_deref().or(Some(MANUFACTURER));
    let mut system = Structure::new(1, handle(1, 0))
        .text(manufacturer)
        .text(identity.product_name.as_deref().or(Some(PRODUCT)))
        .text(identity.version.as_deref())
        .text(identity.serial_number.as_deref());
    system.fields.extend(wire_uuid(identity.uuid));
    system
        .byte(WAKE_UP_POWER_SWITCH)
        .text(identity.sku_number.as_deref())
        .text(identity.family.as_deref())
        .finish(table);
    Structure::new(3, handle(3, 0))
        .text(manufacturer)
        .byte(CHASSIS_OTHER)
        .text(None)
        .text(None)
        .text(identity.asset_tag.as_deref())
        .byte(STATE_SAFE)
        .byte(STATE_SAFE)
        .byte(STATE_SAFE)
        .byte(SECURITY_NONE)
        .double(0)
        .byte(0) // height
        .byte(0) // power cords
        .byte(0) // contained elements
        .byte(0)
        .text(None)
        .finish(table);
}

/// The first three fields of a UUID are little-endian in the table.
fn wire_uuid(uuid: Option<[u8; 16]>) -> [u8; 16] {
    let mut bytes = uuid.unwrap_or_default();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

fn processor(vcpus: u32, table: &mut Vec<u8>) {
    let short = vcpus.min(0xff) as u8;
    let long = vcpus.min(0xffff) as u16;
    Structure::new(4, handle(4, 0))
        .text(Some("CPU 0"))
        .byte(PROCESSOR_CENTRAL)
        .byte(PROCESSOR_FAMILY_UNKNOWN)
        .text(Some(MANUFACTURER))
        .quad(0) // CPUID says it better
        .text(None)
        .byte(0) // voltage
        .word(0) // clocks: unknown
        .word(0)
        .word(0)
        .byte(PROCESSOR_POPULATED_ENABLED)
        .byte(UPGRADE_OTHER)
        .word(NO_CACHE)
        .word(NO_CACHE)
        .word(NO_CACHE)
        .text(None)
        .text(None)
        .text(None)
        .byte(short)
        .byte(short)
        .byte(short)
        .word(PROCESSOR_64_BIT)
        .word(PROCESSOR_FAMILY_UNKNOWN.into())
        .word(long)
        .word(long)
        .word(long)
        .finish(table);
}

/// One array with one module, and where its bytes lie in the guest.
fn memory_structures(memory: u64, table: &mut Vec<u8>) {
    let array = handle(16, 0);
    Structure::new(16, array)
        .byte(LOCATION_OTHER)
        .byte(USE_SYSTEM_MEMORY)
        .byte(CORRECTION_MULTI_BIT)
        .double(SEE_EXTENDED)
        .word(NONE)
        .word(1)
        .quad(memory)
        .finish(table);
    let mib = memory >> 20;
    let (size, extended) = if mib < 0x7fff {
        (mib as u16, 0)
    } else {
        (
            0x7fff,
            u32::try_from(mib).unwrap_or(u32::MAX) & !SEE_EXTENDED,
        )
    };
    Structure::new(17, handle(17, 0))
        .word(array)
        .word(NONE)
        .word(0xffff) // widths: unknown
        .word(0xffff)
        .word(size)
        .byte(FORM_DIMM)
        .byte(0)
        .text(Some("DIMM 0"))
        .text(None)
        .byte(MEMORY_RAM)
        .word(DETAIL_OTHER)
        .word(0)
        .text(Some(MANUFACTURER))
        .text(None)
        .text(None)
        .text(None)
        .byte(0)
        .double(extended)
        .word(0)
        .finish(table);
    for (index, (start, length)) in ram_part(0, memory).into_iter().enumerate() {
        // Only a range below 4 GiB is sure to fit the short fields.
        let short = start < LOW_RAM_END;
        let kib = |bytes: u64| (bytes >> 10) as u32;
        let end = start + length - 1;
        Structure::new(19, handle(19, index as u8))
            .double(if short { kib(start) } else { u32::MAX })
            .double(if short { kib(end) } else { u32::MAX })
            .word(array)
            .byte(1)
            .quad(if short { 0 } else { start })
            .quad(if short { 0 } else { end })
            .finish(table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::plain;

    /// Splits a table into type, fields and strings.
    fn parse(mut table: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut structures = Vec::new();
        while !table.is_empty() {
            let length = table[1] as usize;
            let end = length
                + table[length..]
                    .windows(2)
                    .position(|pair| pair == [0, 0])
                    .unwrap();
            let strings = String::from_utf8(table[length..end].to_vec()).unwrap();
            structures.push((
                table[0],
                table[..length].to_vec(),
                strings
                    .split('\0')
                    .filter(|text| !text.is_empty())
                    .map(str::to_owned)
                    .collect(),
            ));
            table = &table[end + 2..];
        }
        structures
    }

    #[test]
    fn structures_have_the_lengths_of_version_3_2() {
        let identity = Identity {
            oem_strings: vec!["one".into(), "two".into()],
            ..Identity::default()
        };
        let lengths: Vec<(u8, usize)> = parse(&table(&identity, 2, 5 << 30))
            .iter()
            .map(|(kind, fields, _)| (*kind, fields.len()))
            .collect();
        assert_eq!(
            lengths,
            [
                (0, 26),
                (1, 27),
                (3, 22),
                (4, 48),
                (11, 5),
                (16, 23),
                (17, 34),
                (19, 31),
                (19, 31),
                (32, 11),
                (127, 4)
            ]
        );
    }

    #[test]
    fn names_and_number_are_where_readers_look_for_them() {
        let uuid = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
        let identity = Identity {
            serial_number: Some("s1".into()),
            uuid: Some(uuid),
            product_name: Some("p1".into()),
            ..Identity::default()
        };
        let structures = parse(&table(&identity, 1, 1 << 30));
        let (_, system, strings) = &structures[1];
        assert_eq!(strings, &["Cloud Hypervisor", "p1", "s1"]);
        // Manufacturer, product, no version, serial number.
        assert_eq!(system[4..8], [1, 2, 0, 3]);
        assert_eq!(
            system[8..24],
            *b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
        );
    }

    #[test]
    fn entry_point_leads_to_the_table_and_sums_to_zero() {
        let ram = plain(16 << 20);
        write_tables(&ram, &Identity::default(), 1, 16 << 20).unwrap();
        let mut entry = [0u8; ENTRY_LENGTH];
        ram.read_slice(&mut entry, GuestAddress(SMBIOS_START))
            .unwrap();
        assert_eq!(&entry[..5], b"_SM3_");
        assert_eq!(
            entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        let address = u64::from_le_bytes(entry[16..].try_into().unwrap());
        let kind: u8 = ram.read_obj(GuestAddress(address)).unwrap();
        assert_eq!((address % 16, kind), (0, 0));
    }

    #[test]
    fn too_many_strings_are_an_error() {
        let ram = plain(16 << 20);
        let identity = Identity {
            oem_strings: vec!["x".repeat(1000); 100],
            ..Identity::default()
        };
        let error = write_tables(&ram, &identity, 1, 16 << 20).unwrap_err();
        assert!(matches!(error, BootError::SmbiosTooBig(_)), "{error}");
    }
}
