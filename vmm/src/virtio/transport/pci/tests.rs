use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api_client::inspect::{InspectNode, InspectValue};
use instrumentation::user_exit::{AddressSpace, RangeMap};
use proptest::prelude::*;
use serde_json::{Value, json};
use vm_memory::Bytes;

use super::*;
use crate::bus::{Bus, BusDevice};
use crate::event::EventSink;
use crate::inspect::{Gate, Scope};
use crate::interrupt::MsiRouter;
use crate::interrupt::testing::{Call, RecordingVm};
use crate::memory::layout::PCI_WINDOW_START;
use crate::memory::{PCI_DEVICE_SLOTS, plain};
use crate::pci::{PciAddress, PciContext, PciFunction, PciUnit};
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, GuestFaults, QueuePosition, VirtioDevice};

const FEATURE: u64 = 1 << 5 | 1 << 40;
const BASE: u64 = PCI_WINDOW_START + (3 << 16);

#[derive(Default)]
struct Seen {
    activation: Mutex<Option<Activation>>,
    resets: AtomicUsize,
    events: AtomicUsize,
}

/// Keeps what it is given.
struct Device {
    seen: Arc<Seen>,
    faults: Arc<GuestFaults>,
    config: [u8; 6],
}

impl VirtioDevice for Device {
    fn kind(&self) -> u32 {
        2
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 64]
    }
    fn features(&self) -> u64 {
        FEATURE
    }
    fn config_length(&self) -> usize {
        self.config.len()
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        crate::virtio::copy_config(&self.config, offset, data);
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config[offset..offset + data.len()].copy_from_slice(data);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        *self.seen.activation.lock().unwrap() = Some(activation);
        Ok(())
    }
    fn workers(&self) -> &[Worker] {
        &[]
    }
    fn faults(&self) -> &Arc<GuestFaults> {
        &self.faults
    }
    fn reset(&mut self) {
        *self.seen.activation.lock().unwrap() = None;
        self.seen.resets.fetch_add(1, Ordering::SeqCst);
    }
}

struct Guest {
    vm: Arc<RecordingVm>,
    bus: Arc<Bus>,
    function: Arc<VirtioPci>,
    seen: Arc<Seen>,
}

impl Guest {
    fn new() -> Self {
        let vm = RecordingVm::new();
        let seen = Arc::new(Seen::default());
        let heard = Arc::clone(&seen);
        let bus = Arc::new(Bus::new(AddressSpace::Mmio, Arc::new(RangeMap::new())));
        let platform = PciContext {
            vm: vm.clone(),
            router: MsiRouter::new(vm.clone()),
            mmio: Arc::clone(&bus),
            memory: Arc::new(plain(16 << 20)),
            events: EventSink::new(move |_| {
                heard.events.fetch_add(1, Ordering::SeqCst);
            }),
        };
        let device = Box::new(Device {
            faults: Arc::new(GuestFaults::new("device")),
            seen: Arc::clone(&seen),
            config: [1, 2, 3, 4, 5, 6],
        });
        let function = VirtioPci::new("d", PciAddress { device: 3 }, device, &platform).unwrap();
        Self {
            vm,
            bus,
            function,
            seen,
        }
    }

    /// One whose registers are reachable.
    fn enabled() -> Self {
        let guest = Self::new();
        guest.function.write_config(4, &[6, 0]);
        guest
    }

    fn write(&self, offset: usize, data: &[u8]) {
        self.function.write(offset as u64, data);
    }

    fn read(&self, offset: usize, length: usize) -> u64 {
        let mut data = [0; 8];
        self.function.read(offset as u64, &mut data[..length]);
        u64::from_le_bytes(data)
    }

    fn status(&self) -> u64 {
        self.read(20, 1)
    }

    fn accept(&self, features: u64) {
        for status in [1, 3] {
            self.write(20, &[status]);
        }
        for half in 0..2u32 {
            self.write(8, &half.to_le_bytes());
            self.write(12, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.write(20, &[0xb]);
    }

    fn set_up_queue(&self, index: u16, size: u16, at: u64) {
        self.write(22, &index.to_le_bytes());
        self.write(24, &size.to_le_bytes());
        self.write(26, &(index + 1).to_le_bytes());
        for (area, address) in [at, at + 0x1000, at + 0x2000].into_iter().enumerate() {
            self.write(32 + 8 * area, &(address as u32).to_le_bytes());
            self.write(36 + 8 * area, &((address >> 32) as u32).to_le_bytes());
        }
        self.write(28, &[1, 0]);
    }

    fn kernel_calls(&self, wanted: fn(&Call) -> bool) -> Vec<Call> {
        self.vm.calls().into_iter().filter(wanted).collect()
    }
}

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;

#[test]
fn a_driver_brings_the_device_up_with_what_it_chose() {
    let guest = Guest::enabled();
    guest.write(0, &[1, 0, 0, 0]);
    assert_eq!(guest.read(4, 4), 1 | 1 << 8);
    guest.accept(VERSION_1 | EVENT_IDX | 1 << 5);
    assert_eq!(guest.status(), 0xb);
    guest.set_up_queue(1, 32, 0x10_0000);
    guest.write(20, &[0xf]);
    assert_eq!(guest.status(), 0xf);
    let activation = guest.seen.activation.lock().unwrap().take().unwrap();
    assert_eq!(activation.features, VERSION_1 | EVENT_IDX | 1 << 5);
    assert_eq!(activation.queues.len(), 1);
    assert_eq!(
        (activation.queues[0].index(), activation.queues[0].size()),
        (1, 32)
    );
    guest.write(20, &[0]);
    assert_eq!(guest.status(), 0);
    assert_eq!(guest.seen.resets.load(Ordering::SeqCst), 1);
    guest.write(22, &[1, 0]);
    assert_eq!((guest.read(24, 2), guest.read(28, 2)), (64, 0));
}

#[test]
fn what_a_driver_does_wrong_is_among_the_counters_of_its_device() {
    let guest = Guest::enabled();
    let faults = || guest.function.counters().unwrap().read()["driver_faults"];
    assert_eq!(faults(), 0);
    guest.accept(VERSION_1);
    guest.set_up_queue(0, 16, 1 << 40);
    guest.write(20, &[0xf]);
    assert_eq!(faults(), 1);
}

#[test]
fn a_driver_that_resets_the_device_in_a_loop_is_not_told_of_each_time() {
    let guest = Guest::enabled();
    for _ in 0..1000 {
        guest.accept(VERSION_1);
        guest.write(20, &[0xf]);
        guest.write(20, &[0]);
    }
    assert_eq!(guest.seen.resets.load(Ordering::SeqCst), 1000);
    assert_eq!(guest.seen.events.load(Ordering::SeqCst), 50);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for features in [VERSION_1 | 1 << 6, 1 << 5, 0] {
        let guest = Guest::enabled();
        guest.accept(features);
        assert_eq!(guest.status(), 3);
        guest.write(20, &[0xf]);
        assert_eq!(guest.status(), 3);
        assert!(guest.seen.activation.lock().unwrap().is_none());
    }
}

#[test]
fn queues_outside_of_memory_make_the_device_ask_for_a_reset() {
    for at in [16 << 20, (16 << 20) - 0x2000, 0x10_0001, u64::MAX - 0xffff] {
        let guest = Guest::enabled();
        guest.accept(VERSION_1);
        guest.set_up_queue(0, 16, at);
        guest.write(20, &[0xf]);
        assert_eq!(guest.status(), 0x4f, "{at:#x}");
        guest.write(20, &[0]);
        assert_eq!(guest.status(), 0);
    }
}

#[test]
fn an_active_queue_cannot_be_changed() {
    let guest = Guest::enabled();
    guest.accept(VERSION_1);
    guest.set_up_queue(0, 16, 0x10_0000);
    guest.set_up_queue(0, 8, 0x20_0000);
    assert_eq!((guest.read(24, 2), guest.read(32, 8)), (16, 0x10_0000));
    guest.write(20, &[0xf]);
    guest.set_up_queue(1, 8, 0x20_0000);
    assert_eq!((guest.read(24, 2), guest.read(28, 2)), (64, 0));
}

#[test]
fn doorbells_and_window_follow_the_bar() {
    let guest = Guest::new();
    let wanted = |call: &Call| !matches!(call, Call::Routes(_));
    assert_eq!(guest.kernel_calls(wanted), []);
    guest.function.write_config(4, &[6, 0]);
    let slot = PCI_DEVICE_SLOTS + 3;
    let at = |base: u64| {
        [
            Call::Doorbell(base + 0x3000),
            Call::Doorbell(base + 0x3004),
            Call::Window(slot, base, 0x2000),
        ]
    };
    assert_eq!(guest.kernel_calls(wanted), at(BASE));
    let elsewhere = BASE + 0x10_0000;
    guest
        .function
        .write_config(0x10, &(elsewhere as u32).to_le_bytes());
    let calls = guest.kernel_calls(wanted)[3..].to_vec();
    let gone = [
        Call::NoWindow(slot),
        Call::NoDoorbell(BASE + 0x3000),
        Call::NoDoorbell(BASE + 0x3004),
    ];
    assert_eq!(calls[..3], gone);
    assert_eq!(calls[3..], at(elsewhere));
    let mut data = [0];
    guest.bus.read(elsewhere + 0x100, &mut data);
    assert_eq!(data, [1]);
    guest.bus.read(BASE + 0x100, &mut data);
    assert_eq!(data, [0xff]);
}

#[test]
fn a_function_that_is_taken_off_the_bus_answers_nowhere() {
    let guest = Guest::enabled();
    guest.function.detach();
    let mut data = [0];
    guest.bus.read(BASE + 0x100, &mut data);
    assert_eq!(data, [0xff]);
    let wanted = |call: &Call| matches!(call, Call::NoDoorbell(_) | Call::NoWindow(_));
    assert_eq!(guest.kernel_calls(wanted).len(), 3);
    assert_eq!(guest.seen.resets.load(Ordering::SeqCst), 1);
    assert_eq!(Arc::strong_count(&guest.function), 1);
}

#[test]
fn interrupts_go_to_the_vector_of_their_queue_or_to_the_status() {
    let guest = Guest::enabled();
    guest.accept(VERSION_1);
    guest.set_up_queue(0, 16, 0x10_0000);
    guest.write(20, &[0xf]);
    let interrupt = {
        let activation = guest.seen.activation.lock().unwrap();
        Arc::clone(&activation.as_ref().unwrap().interrupt)
    };
    // MSI-X is off: the status is all there is, and reading it clears it.
    interrupt.queue_used(0);
    assert_eq!((guest.read(ISR, 1), guest.read(ISR, 1)), (1, 0));
    let control = guest.function.config()[0x34] as usize + 2;
    guest.function.write_config(control, &[0, 0x80]);
    interrupt.queue_used(0);
    assert_eq!(guest.read(ISR, 1), 0);
    assert_eq!(guest.read(PENDING, 8), 1 << 1);
    interrupt.needs_reset();
    assert_eq!(guest.status(), 0x4f);
}

#[test]
fn the_device_configuration_is_read_and_written_within_its_length() {
    let guest = Guest::enabled();
    assert_eq!(guest.read(DEVICE, 8), 0x0605_0403_0201);
    guest.write(DEVICE + 4, &[9, 9]);
    guest.write(DEVICE + 5, &[7, 7]);
    guest.write(DEVICE + 8, &[7]);
    assert_eq!(guest.read(DEVICE, 8), 0x0909_0403_0201);
}

/// A function whose driver has brought it up, as it is saved.
fn saved() -> VirtioPciState {
    let guest = Guest::enabled();
    guest.accept(VERSION_1 | EVENT_IDX | 1 << 5);
    guest.set_up_queue(1, 32, 0x10_0000);
    guest.write(16, &[2, 0]);
    guest.write(20, &[0xf]);
    guest.function.write_config(4, &[6, 4]);
    let mut state = guest.function.save_state().unwrap();
    // The device of these tests has no thread that is somewhere in a queue.
    state.queues = vec![QueuePosition {
        index: 1,
        next_available: 7,
        next_used: 5,
    }];
    state
}

#[test]
fn a_saved_function_goes_on_in_another_one() {
    let state = saved();
    let written: VirtioPciState =
        serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    assert_eq!(written, state);
    let guest = Guest::new();
    guest.function.restore_state(&written).unwrap();
    assert_eq!((guest.status(), guest.read(16, 2)), (0xf, 2));
    assert_eq!(guest.function.bar().0, BASE);
    let activation = guest.seen.activation.lock().unwrap().take().unwrap();
    assert_eq!(activation.features, VERSION_1 | EVENT_IDX | 1 << 5);
    assert_eq!(activation.queues.len(), 1);
    assert_eq!(activation.queues[0].position(), state.queues[0]);
    // Nobody is told of a driver that took the device long ago.
    assert_eq!(guest.seen.events.load(Ordering::SeqCst), 0);
    let mut again = guest.function.save_state().unwrap();
    again.queues.clone_from(&state.queues);
    assert_eq!(again, state);
}

#[test]
fn a_function_that_failed_waits_for_its_reset_afterwards_too() {
    let guest = Guest::enabled();
    guest.accept(VERSION_1);
    guest.set_up_queue(0, 16, 1 << 40);
    guest.write(20, &[0xf]);
    let state = guest.function.save_state().unwrap();
    let other = Guest::new();
    other.function.restore_state(&state).unwrap();
    assert_eq!(other.status(), 0xf | 0x40);
    assert!(other.seen.activation.lock().unwrap().is_none());
    other.write(20, &[0]);
    assert_eq!(other.status(), 0);
}

#[test]
fn the_state_of_another_device_is_refused() {
    let state = serde_json::to_value(saved()).unwrap();
    for (place, wrong) in [
        ("/config/0", json!(1)),
        ("/common/offered", json!(u64::MAX)),
        ("/common/accepted", json!(u64::MAX)),
        ("/common/queues/0/max_size", json!(32)),
        ("/common/queues/1/size", json!(3)),
        ("/common/queues", json!([])),
        ("/common/queues/1/areas/0", json!(u64::MAX)),
        ("/table/entries", json!([])),
        ("/table/pending", json!([true])),
    ] {
        let mut other = state.clone();
        *other.pointer_mut(place).unwrap() = wrong;
        let other: VirtioPciState = serde_json::from_value(other).unwrap();
        let refused = Guest::new().function.restore_state(&other);
        assert!(refused.is_err(), "{place}");
    }
}

/// What an inspection shows of the function, or of a part of it.
fn inspected(guest: &Guest, path: &[&str]) -> InspectNode {
    let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
    let scope = Scope::new(&path, Instant::now() + Duration::from_secs(1));
    let gate = Gate::default();
    let mut node = InspectNode::default();
    guest.function.ask();
    guest
        .function
        .inspect(&scope, &mut node, &gate.enter().unwrap());
    node
}

fn number(node: &InspectNode, name: &str) -> u64 {
    match node.values.get(name) {
        Some(InspectValue::Number(number)) => *number,
        other => panic!("{name}: {other:?}"),
    }
}

fn text(node: &InspectNode, name: &str) -> String {
    node.values[name].to_string()
}

#[test]
fn an_inspection_shows_the_registers_and_the_indices_in_memory() {
    let guest = Guest::enabled();
    guest.accept(VERSION_1 | EVENT_IDX | 1 << 5);
    guest.set_up_queue(1, 32, 0x10_0000);
    let control = guest.function.config()[0x34] as usize + 2;
    guest.function.write_config(control, &[0, 0x80]);
    guest.write(TABLE + 16, &0xfee0_1000_u32.to_le_bytes());
    guest.write(TABLE + 24, &0x41_u32.to_le_bytes());
    guest.write(20, &[0xf]);
    for (place, word) in [
        (0x10_1002, 7u16),
        (0x10_2002, 5),
        (0x10_1044, 4),
        (0x10_2104, 6),
    ] {
        let at = vm_memory::GuestAddress(place);
        guest
            .function
            .memory_for_tests()
            .write_obj(word, at)
            .unwrap();
    }
    let node = inspected(&guest, &[]);
    assert_eq!(text(&node, "kind"), "block");
    assert_eq!(text(&node, "pci"), "0000:00:03.0");
    assert_eq!(
        text(&node, "status"),
        "ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK"
    );
    assert_eq!(text(&node, "features"), "BLK_RO RING_EVENT_IDX VERSION_1");
    assert_eq!(text(&node, "features_accepted"), "0x120000020");
    assert_eq!(text(&node, "bar0"), format!("{BASE:#x}"));
    assert_eq!(node.counters["driver_faults"], 0);
    let msix = &node.children["msix"];
    assert_eq!(
        (text(msix, "enabled"), text(msix, "masked")),
        ("yes".into(), "no".into())
    );
    let vector = &msix.children["vector1"];
    assert_eq!(text(vector, "address"), "0xfee01000");
    assert_eq!(
        (text(vector, "data"), text(vector, "masked")),
        ("0x41".into(), "yes".into())
    );
    let queue = &node.children["queue1"];
    assert_eq!((number(queue, "size"), number(queue, "max_size")), (32, 64));
    assert_eq!(text(queue, "ready"), "yes");
    assert_eq!(text(queue, "device_area"), "0x102000");
    assert_eq!(
        text(queue, "notify_address"),
        format!("{:#x}", BASE + 0x3004)
    );
    let indices = ["avail_idx", "used_idx", "used_event", "avail_event"];
    assert_eq!(indices.map(|name| number(queue, name)), [7, 5, 4, 6]);
    let other = &node.children["queue0"];
    assert_eq!(text(other, "ready"), "no");
    assert!(!other.values.contains_key("avail_idx"));
    // Only what is asked for.
    let one = inspected(&guest, &["queue1"]);
    assert!(one.children["msix"].values.is_empty());
    assert_eq!(&one.children["queue1"], queue);
    // Reading it again gives the same: nothing was taken.
    assert_eq!(inspected(&guest, &[]), node);
}

#[test]
fn rings_outside_of_memory_are_said_to_be_unreadable() {
    let guest = Guest::enabled();
    guest.accept(VERSION_1);
    guest.set_up_queue(0, 16, u64::MAX - 0x2001);
    let node = inspected(&guest, &["queue0"]);
    let queue = &node.children["queue0"];
    assert_eq!(queue.unavailable.len(), 2, "{queue:?}");
}

#[test]
fn a_device_that_is_waited_for_is_shown_as_it_was_and_at_once() {
    let guest = Guest::enabled();
    guest.accept(VERSION_1);
    guest.set_up_queue(0, 16, 0x10_0000);
    guest.write(20, &[0xf]);
    let free = inspected(&guest, &[]);
    assert!(free.unavailable.is_empty());
    guest.function.hold_for_tests(|| {
        let start = Instant::now();
        let node = inspected(&guest, &[]);
        assert!(start.elapsed() < Duration::from_millis(500));
        assert_eq!(node.unavailable.len(), 1, "{node:?}");
        assert_eq!(node.children, free.children);
        assert_eq!(node.values, free.values);
    });
    assert!(inspected(&guest, &[]).unavailable.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_a_guest_writes_nobody_panics(
        accesses in prop::collection::vec(
            (any::<bool>(), 0usize..0x4100, prop::sample::select(vec![1usize, 2, 4, 8]), any::<u64>(), any::<bool>()),
            0..200,
        )
    ) {
        let guest = Guest::enabled();
        for (config, offset, width, value, small) in accesses {
            let value = if small { value & 0x1f } else { value };
            let data = &value.to_le_bytes()[..width];
            if config {
                guest.function.write_config(offset % 256, &data[..width.min(4)]);
            } else {
                // Half of them go to the common configuration.
                let offset = if offset & 1 == 0 { offset % 64 } else { offset };
                guest.write(offset, data);
                guest.read(offset, width);
            }
        }
    }

    #[test]
    fn no_saved_numbers_make_anybody_panic(
        damage in prop::collection::vec((0usize..200, any::<u64>()), 1..4),
    ) {
        let mut state = serde_json::to_value(saved()).unwrap();
        let mut numbers = Vec::new();
        collect_numbers(&mut state, &mut numbers);
        let count = numbers.len();
        for (at, value) in damage {
            *numbers[at % count] = json!(value);
        }
        // A number that its field cannot hold is refused before.
        if let Ok(state) = serde_json::from_value(state) {
            let _ = Guest::new().function.restore_state(&state);
        }
    }
}

/// Every number of a state but the bytes of the registers, which are compared.
fn collect_numbers<'a>(value: &'a mut Value, numbers: &mut Vec<&'a mut Value>) {
    match value {
        Value::Number(_) => numbers.push(value),
        Value::Array(values) if values.len() < 64 => {
            values
                .iter_mut()
                .for_each(|value| collect_numbers(value, numbers));
        }
        Value::Object(values) => {
            values
                .values_mut()
                .for_each(|value| collect_numbers(value, numbers));
        }
        _ => {}
    }
}
