//! How the guest hears of devices that come and go, and of the power button:
//! one interrupt, and registers that say what it is about (ACPI 6.5, 5.6.9).

use acpi_tables::{Aml, AmlSink, aml};

use crate::devices::{EVENT_PCI, EVENT_POWER_BUTTON};
use crate::memory::layout::{HOTPLUG_GSI, HOTPLUG_PORTS};

/// Values of a notification (ACPI 6.5, 5.6.6): of a device, and of a button.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
const BUTTON_PRESSED: u8 = 0x80;

/// Places on the bus where devices come and go: all but the host bridge's.
pub(super) const PLACES: std::ops::Range<u8> = 1..32;

/// The registers, and what is done about each event.
pub(super) struct Events;

impl Aml for Events {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (base, length) = HOTPLUG_PORTS;
        let register = |name: &[u8; 4]| aml::FieldEntry::Named(*name, 32);
        let region =
            aml::OpRegion::new("REGS".into(), aml::OpRegionSpace::SystemIO, &base, &length);
        let fields = aml::Field::new(
            "REGS".into(),
            aml::FieldAccessType::DWord,
            aml::FieldLockRule::NoLock,
            aml::FieldUpdateRule::WriteAsZeroes,
            vec![
                register(b"EVNT"),
                register(b"PCIU"),
                register(b"PCID"),
                register(b"PCIE"),
            ],
        );
        let events = aml::Path::new("EVNT");
        let read_events = aml::Store::new(&aml::Local(0), &events);
        let about_pci = aml::And::new(&aml::Local(1), &aml::Local(0), &EVENT_PCI);
        let look = aml::MethodCall::new("\\_SB_.PCI0.PCNT".into(), vec![]);
        let about_button = aml::And::new(&aml::Local(1), &aml::Local(0), &EVENT_POWER_BUTTON);
        let button = aml::Path::new("\\_SB_.PWRB");
        let press = aml::Notify::new(&button, &BUTTON_PRESSED);
        aml::Device::new(
            "GED_".into(),
            vec![
                &aml::Name::new("_HID".into(), &"ACPI0013"),
                &aml::Name::new("_UID".into(), &aml::ZERO),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![&aml::Interrupt::new(
                        true,
                        true,
                        false,
                        false,
                        HOTPLUG_GSI,
                    )]),
                ),
                &region,
                &fields,
                &aml::Method::new(
                    "_EVT".into(),
                    1,
                    true,
                    vec![
                        &read_events,
                        &aml::If::new(&about_pci, vec![&look]),
                        &aml::If::new(&about_button, vec![&press]),
                    ],
                ),
            ],
        )
        .to_aml_bytes(sink);
        aml::Device::new(
            "PWRB".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C")),
                &aml::Name::new("_UID".into(), &aml::ZERO),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The places on the bus; belongs into the host bridge.
pub(super) struct Places;

impl Aml for Places {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        for place in PLACES {
            let mask = 1u32 << place;
            let ejected = aml::Path::new("\\_SB_.GED_.PCIE");
            let eject = aml::Store::new(&ejected, &mask);
            aml::Device::new(
                name(place).as_str().into(),
                vec![
                    &aml::Name::new("_SUN".into(), &place),
                    &aml::Name::new("_ADR".into(), &(u32::from(place) << 16)),
                    &aml::Method::new("_EJ0".into(), 1, true, vec![&eject]),
                ],
            )
            .to_aml_bytes(sink);
        }
        notify("PCIU", "PCNU", DEVICE_CHECK, sink);
        notify("PCID", "PCND", EJECT_REQUEST, sink);
        aml::Method::new(
            "PCNT".into(),
            0,
            true,
            vec![
                &aml::MethodCall::new("PCNU".into(), vec![]),
                &aml::MethodCall::new("PCND".into(), vec![]),
            ],
        )
        .to_aml_bytes(sink);
    }
}

fn name(place: u8) -> String {
    format!("S{place:03}")
}

/// A method that reads a register and notifies each place in it.
fn notify(register: &str, method: &str, value: u8, sink: &mut dyn AmlSink) {
    let register = aml::Path::new(&format!("\\_SB_.GED_.{register}"));
    let read = aml::Store::new(&aml::Local(0), &register);
    let mut steps: Vec<Box<dyn Aml>> = vec![Box::new(Bytes::of(&read))];
    for place in PLACES {
        let mask = 1u32 << place;
        let device = aml::Path::new(&name(place));
        let tell = aml::Notify::new(&device, &value);
        let named = aml::And::new(&aml::Local(1), &aml::Local(0), &mask);
        steps.push(Box::new(Bytes::of(&aml::If::new(&named, vec![&tell]))));
    }
    let steps = steps.iter().map(|step| &**step).collect();
    aml::Method::new(method.into(), 0, true, steps).to_aml_bytes(sink);
}

/// Something that is written already; frees it from what it borrowed.
struct Bytes(Vec<u8>);

impl Bytes {
    fn of(term: &dyn Aml) -> Self {
        Self(super::bytes_of(term))
    }
}

impl Aml for Bytes {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}
