use std::sync::{Arc, Mutex};

use instrumentation::user_exit::{AddressSpace, RangeId, RangeMap};
use serde_json::json;

use super::*;
use crate::bus::Bus;
use crate::event::{EventSink, MachineEvent};
use crate::interrupt::MsiRouter;
use crate::interrupt::testing::RecordingVm;
use crate::memory::plain;
use crate::pci::{BarPlacer, PciAddress, PciContext, PciFunction, PciUnit};

const SLOT: PciAddress = PciAddress { device: 3 };

struct Guest {
    mmio: Arc<Bus>,
    device: Arc<Pvpanic>,
    told: Arc<Mutex<Vec<MachineEvent>>>,
    base: u64,
}

impl Guest {
    fn new() -> Self {
        let vm = RecordingVm::new();
        let mmio = Arc::new(Bus::new(AddressSpace::Mmio, Arc::new(RangeMap::new())));
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let context = PciContext {
            vm: vm.clone(),
            router: MsiRouter::new(vm),
            mmio: Arc::clone(&mmio),
            memory: Arc::new(plain(1 << 20)),
            events: EventSink::new(move |event| heard.lock().unwrap().push(event)),
        };
        Self {
            mmio,
            device: Pvpanic::new("p", SLOT, &context),
            told,
            base: BarPlacer::first_address(SLOT).into(),
        }
    }

    /// The driver lets the device answer.
    fn enabled() -> Self {
        let guest = Self::new();
        guest.device.write_config(4, &[2, 0]);
        guest
    }

    fn answers(&self) -> bool {
        self.mmio.read(self.base, &mut [0]).range != RangeId::default()
    }

    /// What a write tells the control thread.
    fn tell(&self, offset: u64, data: &[u8]) -> Vec<MachineEvent> {
        self.mmio.write(self.base + offset, data);
        std::mem::take(&mut *self.told.lock().unwrap())
    }
}

#[test]
fn register_says_what_can_be_told_and_tells_it() {
    let guest = Guest::enabled();
    let mut read = [0xff; 2];
    guest.mmio.read(guest.base, &mut read);
    assert_eq!(read, [3, 0]);
    let told = |data: &[u8]| {
        let told = guest.tell(0, data).into_iter();
        told.map(|event| match event {
            MachineEvent::GuestPanic(name) => name,
            other => panic!("{other:?}"),
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(told(&[1]), ["panic"]);
    assert_eq!(told(&[2, 0, 0, 0]), ["crash_loaded"]);
    assert_eq!(told(&[3]), ["panic", "crash_loaded"]);
}

#[test]
fn other_bits_and_other_bytes_tell_nothing() {
    let guest = Guest::enabled();
    for (offset, data) in [(0, &[0xfc][..]), (1, &[1]), (8, &[1, 1]), (15, &[1])] {
        assert!(guest.tell(offset, data).is_empty(), "{offset} {data:?}");
    }
}

#[test]
fn guest_that_tells_without_end_is_heard_a_few_times() {
    let guest = Guest::enabled();
    let told: usize = (0..1000).map(|_| guest.tell(0, &[1]).len()).sum();
    assert_eq!(told, crate::log_limit::LINES as usize);
}

#[test]
fn register_is_there_while_memory_is_decoded_and_gone_with_the_function() {
    let guest = Guest::new();
    assert!(!guest.answers());
    guest.device.write_config(4, &[2, 0]);
    assert!(guest.answers());
    assert_eq!(guest.device.bar(), (guest.base, 16));
    guest.device.detach();
    assert!(!guest.answers());
}

#[test]
fn device_that_is_made_anew_answers_where_the_guest_had_put_it() {
    let mut first = Guest::enabled();
    let moved = first.base + 0x8000;
    first
        .device
        .write_config(0x10, &u32::try_from(moved).unwrap().to_le_bytes());
    let saved = first.device.save().unwrap();
    let mut second = Guest::new();
    second.device.restore(&saved).unwrap();
    (first.base, second.base) = (moved, moved);
    assert!(first.answers() && second.answers());
    assert_eq!(second.device.config(), first.device.config());
    for wrong in [
        json!(null),
        json!({"config": [1, 2]}),
        json!({"config": vec![0; 256]}),
    ] {
        assert!(Guest::new().device.restore(&wrong).is_err(), "{wrong}");
    }
}
