//! vCPU threads on the machine's own KVM; without one the tests say so and
//! pass.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use hypervisor::kvm::KvmHypervisor;
use hypervisor::{Hypervisor, VcpuSetup, Vm};
use instrumentation::user_exit::{AddressSpace, RangeMap};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::registers::Entry;
use crate::bus::BusDevice;
use crate::event::MachineEvent;
use crate::memory::{GuestRam, attach, plain};

const CODE: u64 = 0x10_0000;

/// Answers reads with a running number and keeps the last value written.
#[derive(Default)]
struct Counter {
    reads: AtomicU64,
    written: AtomicU64,
}

impl BusDevice for Counter {
    fn read(&self, _: u64, data: &mut [u8]) {
        let number = self.reads.fetch_add(1, Ordering::SeqCst) + 1;
        data.copy_from_slice(&number.to_le_bytes()[..data.len()]);
    }

    fn write(&self, _: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        self.written
            .store(u64::from_le_bytes(bytes), Ordering::SeqCst);
    }
}

struct Machine {
    handle: VcpuHandle,
    counter: Arc<Counter>,
    recorder: Arc<UserExitRecorder>,
    events: Receiver<MachineEvent>,
    // Go last, the memory after the VM.
    _vm: Arc<dyn Vm>,
    _ram: GuestRam,
}

/// A parked vCPU that would run `code` in 32-bit protected mode.
fn machine(code: &[u8]) -> Option<Machine> {
    let kvm = match KvmHypervisor::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    install_kick_handler().unwrap();
    let vm = kvm.create_vm().unwrap();
    let ram = plain(16 << 20);
    ram.write_slice(code, GuestAddress(CODE)).unwrap();
    attach(vm.as_ref(), &ram).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_up(&VcpuSetup {
        cpuid: kvm.supported_cpuid().unwrap(),
        msrs: Vec::new(),
        registers: Some(Entry::Pvh { address: CODE }.registers()),
        x2apic: false,
        extended_state: false,
    })
    .unwrap();
    let names = Arc::new(RangeMap::new());
    let buses = Buses {
        pio: Arc::new(Bus::new(AddressSpace::Port, Arc::clone(&names))),
        mmio: Arc::new(Bus::new(AddressSpace::Mmio, names)),
    };
    let counter = Arc::new(Counter::default());
    buses
        .pio
        .insert("counter", 0x70, 8, counter.clone())
        .unwrap();
    let recorder = Arc::new(UserExitRecorder::new());
    let (sender, events) = channel();
    let sink = EventSink::new(move |event| {
        let _ = sender.send(event);
    });
    let handle =
        VcpuHandle::start(0, vcpu, &buses, Arc::clone(&recorder), &sink, Vec::new()).unwrap();
    Some(Machine {
        handle,
        counter,
        recorder,
        events,
        _vm: vm,
        _ram: ram,
    })
}

/// Reads a number and writes it back, for ever.
#[rustfmt::skip]
const COPY: [u8; 6] = [
    0xe5, 0x70,                         // again: in eax, 0x70
    0xe7, 0x74,                         // out 0x74, eax
    0xeb, 0xfa,                         // jmp again
];

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn reads(machine: &Machine) -> u64 {
    machine.counter.reads.load(Ordering::SeqCst)
}

#[test]
fn a_vcpu_runs_only_between_resume_and_pause() {
    let Some(machine) = machine(&COPY) else {
        return;
    };
    machine.handle.wait_parked();
    assert_eq!(reads(&machine), 0);
    for _ in 0..20 {
        let before = reads(&machine);
        machine.handle.resume();
        wait_until("the guest runs", || reads(&machine) > before + 10);
        machine.handle.request_pause();
        machine.handle.wait_parked();
        let parked = reads(&machine);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(reads(&machine), parked);
        // Each value came back, so no read was cut in half by the pause.
        let written = machine.counter.written.load(Ordering::SeqCst);
        assert!(
            written == parked || written + 1 == parked,
            "{written} of {parked}"
        );
    }
}

#[test]
fn a_running_vcpu_and_a_parked_one_end_with_their_handle() {
    for resume in [false, true] {
        let Some(machine) = machine(&COPY) else {
            return;
        };
        if resume {
            machine.handle.resume();
            wait_until("the guest runs", || reads(&machine) > 0);
        }
        let Machine {
            handle, counter, ..
        } = machine;
        drop(handle);
        let after = counter.reads.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(counter.reads.load(Ordering::SeqCst), after);
    }
}

#[test]
fn accesses_are_recorded_by_kind_range_and_width() {
    let Some(machine) = machine(&COPY) else {
        return;
    };
    machine.handle.resume();
    wait_until("the guest runs", || reads(&machine) >= 100);
    machine.handle.request_pause();
    machine.handle.wait_parked();
    let counts = machine.recorder.read();
    let of = |kind| {
        counts
            .iter()
            .filter(|count| count.kind == kind)
            .map(|count| {
                (
                    count.exits,
                    count.access.unwrap().range,
                    count.access.unwrap().size,
                )
            })
            .collect::<Vec<_>>()
    };
    use instrumentation::user_exit::UserExitKind;
    assert_eq!(of(UserExitKind::IoIn), [(reads(&machine), 2, 4)]);
    assert_eq!(of(UserExitKind::IoOut).len(), 1);
}

#[test]
fn a_fault_that_cannot_be_handled_ends_the_vcpu_with_a_word() {
    #[rustfmt::skip]
    let Some(machine) = machine(&[
        0x0f, 0x01, 0x1d, 0x00, 0x20, 0x00, 0x00, // lidt [0x2000], an empty table
        0xcc,                                     // int3
    ]) else { return };
    machine.handle.resume();
    let event = machine.events.recv_timeout(Duration::from_secs(20));
    // A KVM without hardware cannot tell a triple fault from its own limits.
    let hardware = KvmHypervisor::open().is_ok_and(|kvm| kvm.isa().is_some());
    match event.unwrap() {
        MachineEvent::Reset => {}
        MachineEvent::Failed(_) if !hardware => {}
        other => panic!("{other:?}"),
    }
    // Nothing is left to stop, and stopping it is no error.
    machine.handle.request_pause();
    machine.handle.wait_parked();
}
