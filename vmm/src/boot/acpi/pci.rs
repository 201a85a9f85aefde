//! The PCI host bridge and the place of its configuration space.

use acpi_tables::mcfg::MCFG;
use acpi_tables::{Aml, AmlSink, aml};

use super::hotplug::Places;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE};
use crate::memory::layout::{
    PCI_CONFIG_LENGTH, PCI_CONFIG_START, PCI_WINDOW_END, PCI_WINDOW_START,
};

/// Where the configuration space is: segment 0, bus 0.
pub(super) fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(PCI_CONFIG_START, 0, 0, 0);
    mcfg
}

/// The bridge, as a conventional one: an operating system does not negotiate
/// with it for features of PCI Express that are not there.
pub(super) struct HostBridge;

impl Aml for HostBridge {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let buses = aml::AddressSpace::<u16>::new_bus_number(0, 0);
        let window = aml::AddressSpace::<u32>::new_memory(
            aml::AddressSpaceCacheable::NotCacheable,
            true,
            PCI_WINDOW_START as u32,
            (PCI_WINDOW_END - 1) as u32,
            None,
        );
        aml::Device::new(
            "PCI0".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A03")),
                &aml::Name::new("_SEG".into(), &aml::ZERO),
                &aml::Name::new("_UID".into(), &aml::ZERO),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![&buses, &window]),
                ),
                &Places,
            ],
        )
        .to_aml_bytes(sink);
        // Linux trusts the configuration space's address only if a device of
        // the mainboard claims it.
        aml::Device::new(
            "MBRD".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C02")),
                &aml::Name::new("_UID".into(), &aml::ZERO),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![&aml::Memory32Fixed::new(
                        true,
                        PCI_CONFIG_START as u32,
                        PCI_CONFIG_LENGTH as u32,
                    )]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}
