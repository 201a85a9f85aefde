use std::sync::Mutex;

use api_client::config::VmConfig;
use hypervisor::Vm;
use instrumentation::user_exit::{AddressSpace, RangeMap};

use super::*;
use crate::interrupt::MsiRouter;
use crate::interrupt::testing::{Call, RecordingVm};
use crate::memory::layout::PCI_CONFIG_START;
use crate::memory::{PCI_DEVICE_SLOTS, plain};

/// A tree of devices, and the buses on which a guest would find them.
struct Machine {
    tree: DeviceTree,
    vm: Arc<RecordingVm>,
    ports: Bus,
    mmio: Arc<Bus>,
    events: Arc<Mutex<Vec<MachineEvent>>>,
}

fn machine() -> Machine {
    let vm = RecordingVm::new();
    let router = MsiRouter::new(Arc::clone(&vm) as Arc<dyn Vm>);
    let line = Arc::new(MsiVector::new(&router).unwrap());
    let names = Arc::new(RangeMap::new());
    let ports = Bus::new(AddressSpace::Port, Arc::clone(&names));
    let mmio = Arc::new(Bus::new(AddressSpace::Mmio, names));
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let sink = EventSink::new(move |event| heard.lock().unwrap().push(event));
    let context = PciContext {
        vm: Arc::clone(&vm) as Arc<dyn Vm>,
        router,
        mmio: Arc::clone(&mmio),
        memory: Arc::new(plain(1 << 20)),
        events: sink,
    };
    Machine {
        tree: DeviceTree::new(context, &ports, line).unwrap(),
        vm,
        ports,
        mmio,
        events,
    }
}

impl Machine {
    fn add_rng(&mut self, id: &str) -> PciAddress {
        let params = PciDevice {
            pci: PciParams {
                id: Some(id.into()),
                device: None,
            },
            params: "/dev/urandom".into(),
        };
        self.tree.add_rng(&params).unwrap();
        self.tree.nodes[id].address
    }

    /// The guest lets the device decode its BAR.
    fn enable(&self, address: PciAddress) {
        let command = PCI_CONFIG_START + u64::from(address.device) * 0x8000 + 4;
        self.mmio.write(command, &2u16.to_le_bytes());
    }

    fn eject(&self, address: PciAddress) {
        let ejected = u64::from(HOTPLUG_PORTS.0) + 12;
        let mask = 1u32 << address.device;
        self.ports.write(ejected, &mask.to_le_bytes());
    }

    fn read_port(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.ports
            .read(u64::from(HOTPLUG_PORTS.0) + register, &mut data);
        u32::from_le_bytes(data)
    }

    /// What the control thread does about events.
    fn handle_events(&mut self) -> Vec<MachineEvent> {
        let events = std::mem::take(&mut *self.events.lock().unwrap());
        for event in &events {
            if let MachineEvent::Ejected(id) = event {
                assert!(self.tree.ejected(id));
            }
        }
        events
    }
}

#[test]
fn device_added_before_the_ejection_is_heard_has_a_slot_of_its_own_and_stays() {
    let mut machine = machine();
    for round in 0..100 {
        let old = machine.add_rng("old");
        assert!(machine.tree.request_unplug("old"));
        machine.eject(old);
        // The request to add comes before the event.
        let new = machine.add_rng("new");
        assert_ne!(new, old, "round {round}");
        assert_eq!(
            machine.handle_events(),
            [MachineEvent::Ejected("old".into())]
        );
        assert!(machine.tree.contains("new") && !machine.tree.contains("old"));
        // Once it is heard, slot and id are free.
        assert_eq!(machine.add_rng("old"), old);
        for (id, address) in [("old", old), ("new", new)] {
            machine.eject(address);
            assert_eq!(machine.handle_events(), [MachineEvent::Ejected(id.into())]);
        }
        assert!(machine.tree.nodes.is_empty());
    }
}

#[test]
fn id_of_a_device_that_is_still_there_is_refused() {
    let mut machine = machine();
    let address = machine.add_rng("a");
    let _ = machine.tree.request_unplug("a");
    machine.eject(address);
    let params = PciDevice {
        pci: PciParams {
            id: Some("a".into()),
            device: None,
        },
        params: "/dev/urandom".into(),
    };
    let refused = machine.tree.add_rng(&params);
    assert!(matches!(refused, Err(DeviceError::Exists(_))));
    machine.handle_events();
    machine.tree.add_rng(&params).unwrap();
}

#[test]
fn memory_slot_is_unmapped_before_the_pci_slot_is_free() {
    let mut machine = machine();
    let address = machine.add_rng("a");
    let slot = PCI_DEVICE_SLOTS + u32::from(address.device);
    machine.enable(address);
    let windows = |machine: &Machine| {
        let of_slot =
            |call: &Call| matches!(call, Call::Window(at, ..) | Call::NoWindow(at) if *at == slot);
        machine.vm.calls().into_iter().filter(of_slot).count()
    };
    assert_eq!(windows(&machine), 1, "the device is mapped");
    machine.eject(address);
    assert_eq!(
        windows(&machine),
        2,
        "and no more, before anybody heard of it"
    );
    machine.handle_events();
    assert_eq!(machine.add_rng("b"), address);
}

#[test]
fn request_that_the_guest_has_not_read_is_not_meant_for_the_next_device() {
    let mut machine = machine();
    let address = machine.add_rng("a");
    assert!(machine.tree.request_unplug("a"));
    assert_eq!(machine.read_port(8), 1 << address.device);
    machine.eject(address);
    // Asked once more, though the guest has done it.
    assert!(machine.tree.request_unplug("a"));
    machine.handle_events();
    assert_eq!(machine.add_rng("b"), address);
    machine.tree.notify_added(address);
    assert_eq!(machine.read_port(8), 0);
    assert_eq!(machine.read_port(4), 1 << address.device);
}

#[test]
fn device_that_a_flag_asks_for_stays_and_keeps_its_slot_when_made_anew() {
    let config = VmConfig {
        watchdog: true,
        pvpanic: true,
        ..VmConfig::default()
    };
    let params = DeviceParams::try_from(&config).unwrap();
    let mut first = machine();
    first.tree.add_all(&params, None).unwrap();
    let pvpanic = first.tree.nodes["__pvpanic"].address;
    first.enable(pvpanic);
    assert!(first.tree.is_fixed("__pvpanic") && first.tree.is_fixed("__watchdog"));
    let shown = first.tree.tree();
    assert!(shown.contains_key("__pvpanic") && !shown.contains_key("_virtio-pci-__pvpanic"));
    assert!(shown["_virtio-pci-__watchdog"].children == ["__watchdog"]);
    first.tree.pause();
    let saved = serde_json::to_value(first.tree.save().unwrap()).unwrap();
    let saved: BusState = serde_json::from_value(saved).unwrap();
    let mut second = machine();
    second.tree.keep_slots(&saved);
    // In another order, the slots would be others.
    let mut params = params;
    params.by_flag.reverse();
    second.tree.add_all(&params, None).unwrap();
    second.tree.restore(&saved).unwrap();
    assert_eq!(second.tree.nodes["__pvpanic"].address, pvpanic);
    let register = first.tree.nodes["__pvpanic"].unit.bar().0;
    second.mmio.write(register, &[1]);
    let told = second.handle_events();
    assert_eq!(told, [MachineEvent::GuestPanic("panic")]);
}
