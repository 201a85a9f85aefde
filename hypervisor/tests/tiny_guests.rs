//! Guests of a few instructions, run on the machine's own KVM. Without one the
//! tests say so and pass; the lab runs them on hosts that have it.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::kvm::KvmHypervisor;
use hypervisor::x86::{Registers, Segment, SpecialRegisters};
use hypervisor::{Hypervisor, Vcpu, VcpuSetup, Vm, VmExit, VmOps};

const CODE: u64 = 0x1000;
const DATA: u64 = 0x1800;
const MEMORY: usize = 0x4000;

/// Page-aligned memory that lives as long as the test.
#[repr(C, align(4096))]
struct Memory([u8; MEMORY]);

/// What a guest asked for, in order.
#[derive(Debug, PartialEq, Eq)]
enum Access {
    In(u16, usize),
    Out(u16, Vec<u8>),
    Load(u64, usize),
    Store(u64, Vec<u8>),
}

/// Remembers accesses and answers reads with a pattern.
#[derive(Default)]
struct Recorder(RefCell<Vec<Access>>);

impl Recorder {
    fn note(&self, access: Access) {
        self.0.borrow_mut().push(access);
    }
}

impl VmOps for Recorder {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0x5a);
        self.note(Access::In(port, data.len()));
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.note(Access::Out(port, data.to_vec()));
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xa5);
        self.note(Access::Load(address, data.len()));
    }
    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.note(Access::Store(address, data.to_vec()));
    }
}

fn real_mode_segment() -> Segment {
    Segment {
        limit: 0xffff,
        type_: 3,
        present: 1,
        s: 1,
        ..Default::default()
    }
}

/// Registers of a processor in real mode that runs the code at `CODE`.
fn real_mode() -> (Registers, SpecialRegisters) {
    let data = real_mode_segment();
    let special = SpecialRegisters {
        cs: Segment { type_: 0xb, ..data },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment {
            type_: 0xb,
            s: 0,
            ..data
        },
        ldt: Segment {
            type_: 2,
            s: 0,
            ..data
        },
        cr0: 0x6000_0010,
        ..Default::default()
    };
    let general = Registers {
        rip: CODE,
        rsp: 0x3000,
        rflags: 2,
        ..Default::default()
    };
    (general, special)
}

struct Guest {
    vcpu: Box<dyn Vcpu>,
    _vm: Arc<dyn Vm>,
    // Last, so that the guest is gone when it goes.
    _memory: Box<Memory>,
}

/// A guest without interrupt controllers, ready to run `code`; `None` without
/// a usable KVM.
fn guest(code: &[u8]) -> Option<Guest> {
    let kvm = match KvmHypervisor::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let mut memory = Box::new(Memory([0; MEMORY]));
    memory.0[CODE as usize..][..code.len()].copy_from_slice(code);
    memory.0[DATA as usize..][..4].copy_from_slice(b"abcd");
    let vm = kvm.create_vm().unwrap();
    // SAFETY:
    // - The memory is dropped after VM and vCPU, see the order of the fields.
    // - Nobody refers to it while the guest runs.
    unsafe { vm.map_memory(0, 0, MEMORY as u64, memory.0.as_mut_ptr()) }.unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_up(&VcpuSetup {
        cpuid: kvm.supported_cpuid().unwrap(),
        msrs: Vec::new(),
        registers: Some(real_mode()),
        x2apic: false,
        extended_state: false,
    })
    .unwrap();
    Some(Guest {
        vcpu,
        _vm: vm,
        _memory: memory,
    })
}

/// Runs until something other than I/O happens.
fn run(guest: &mut Guest, ops: &Recorder) -> VmExit {
    for _ in 0..1000 {
        match guest.vcpu.run(ops).unwrap() {
            VmExit::Handled => {}
            exit => return exit,
        }
    }
    panic!("the guest ran away: {:?}", ops.0.borrow().last());
}

#[test]
fn port_accesses_arrive_with_port_and_width() {
    #[rustfmt::skip]
    let Some(mut guest) = guest(&[
        0xba, 0xf8, 0x03,       // mov dx, 0x3f8
        0xb0, 0x41,             // mov al, 'A'
        0xee,                   // out dx, al
        0xed,                   // in ax, dx
        0xef,                   // out dx, ax
        0xf4,                   // hlt
    ]) else { return };
    let ops = Recorder::default();
    assert_eq!(run(&mut guest, &ops), VmExit::Halt);
    assert_eq!(
        *ops.0.borrow(),
        [
            Access::Out(0x3f8, vec![0x41]),
            Access::In(0x3f8, 2),
            // What was read reached the register.
            Access::Out(0x3f8, vec![0x5a, 0x5a]),
        ]
    );
}

#[test]
fn a_string_instruction_arrives_element_by_element() {
    #[rustfmt::skip]
    let Some(mut guest) = guest(&[
        0xba, 0x00, 0x05,       // mov dx, 0x500
        0xbe, 0x00, 0x18,       // mov si, DATA
        0xb9, 0x02, 0x00,       // mov cx, 2
        0xfc,                   // cld
        0xf3, 0x6f,             // rep outsw
        0xf4,                   // hlt
    ]) else { return };
    let ops = Recorder::default();
    assert_eq!(run(&mut guest, &ops), VmExit::Halt);
    assert_eq!(
        *ops.0.borrow(),
        [
            Access::Out(0x500, b"ab".to_vec()),
            Access::Out(0x500, b"cd".to_vec()),
        ]
    );
}

#[test]
fn memory_that_is_not_there_is_memory_mapped_io() {
    #[rustfmt::skip]
    let Some(mut guest) = guest(&[
        0xa0, 0x10, 0x50,       // mov al, [0x5010]
        0xa2, 0x20, 0x50,       // mov [0x5020], al
        0xf4,                   // hlt
    ]) else { return };
    let ops = Recorder::default();
    assert_eq!(run(&mut guest, &ops), VmExit::Halt);
    assert_eq!(
        *ops.0.borrow(),
        [Access::Load(0x5010, 1), Access::Store(0x5020, vec![0xa5]),]
    );
}

#[test]
fn a_kicked_vcpu_finishes_its_read_and_does_not_go_on() {
    #[rustfmt::skip]
    let Some(mut guest) = guest(&[
        0xe4, 0x70,             // in al, 0x70
        0xe6, 0x71,             // out 0x71, al
        0xf4,                   // hlt
    ]) else { return };
    let ops = Recorder::default();
    let kick = guest.vcpu.kick_handle().unwrap();
    assert_eq!(guest.vcpu.run(&ops).unwrap(), VmExit::Handled);
    kick.set_immediate_exit(true);
    for _ in 0..3 {
        assert_eq!(guest.vcpu.run(&ops).unwrap(), VmExit::Interrupted);
    }
    assert_eq!(*ops.0.borrow(), [Access::In(0x70, 1)]);
    kick.set_immediate_exit(false);
    assert_eq!(run(&mut guest, &ops), VmExit::Halt);
    assert_eq!(ops.0.borrow()[1], Access::Out(0x71, vec![0x5a]));
}

#[test]
fn a_triple_fault_is_reported_as_one() {
    if KvmHypervisor::open().is_ok_and(|kvm| kvm.isa().is_none()) {
        eprintln!("skipped: a KVM without hardware does not check the table's limit");
        return;
    }
    #[rustfmt::skip]
    let Some(mut guest) = guest(&[
        0x0f, 0x01, 0x1e, 0x00, 0x20, // lidt [0x2000], an empty table
        0xcc,                   // int3
    ]) else { return };
    assert_eq!(run(&mut guest, &Recorder::default()), VmExit::TripleFault);
}

#[test]
fn the_statistics_count_what_the_guest_did() {
    #[rustfmt::skip]
    let Some(mut guest) = guest(&[
        0xb9, 0x64, 0x00,       // mov cx, 100
        0xe6, 0x80,             // again: out 0x80, al
        0xe2, 0xfc,             // loop again
        0xf4,                   // hlt
    ]) else { return };
    let stats = guest.vcpu.stats().unwrap();
    let before = stats.sample().unwrap();
    assert_eq!(run(&mut guest, &Recorder::default()), VmExit::Halt);
    let after = stats.sample().unwrap();
    assert!(after.exits >= before.exits + 101, "{before:?} {after:?}");
    if let Some(arrays) = &after.arrays {
        assert_eq!(arrays.exits.iter().sum::<u64>(), after.exits);
    }
    // Reading takes no exit.
    std::thread::sleep(Duration::from_millis(1));
    assert_eq!(stats.sample().unwrap(), after);
}
