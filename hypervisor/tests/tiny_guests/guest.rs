//! A guest of a few instructions, and what it asks of the world.

use std::cell::RefCell;
use std::sync::Arc;

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
pub enum Access {
    In(u16, usize),
    Out(u16, Vec<u8>),
    Load(u64, usize),
    Store(u64, Vec<u8>),
}

/// Remembers accesses and answers reads with a pattern.
#[derive(Default)]
pub struct Recorder(pub RefCell<Vec<Access>>);

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

/// A guest that can be taken down and built again around the same memory.
pub struct Guest {
    pub vcpu: Box<dyn Vcpu>,
    pub vm: Arc<dyn Vm>,
    kvm: KvmHypervisor,
    // Last, so that the guest is gone when it goes.
    memory: Box<Memory>,
}

/// A guest without interrupt controllers, ready to run `code`; `None` without
/// a usable KVM.
pub fn guest(code: &[u8]) -> Option<Guest> {
    let mut guest = bare_guest(code, false)?;
    guest
        .vcpu
        .set_up(&VcpuSetup {
            cpuid: guest.kvm.supported_cpuid().unwrap(),
            msrs: Vec::new(),
            registers: Some(real_mode()),
            x2apic: false,
            extended_state: false,
        })
        .unwrap();
    Some(guest)
}

/// As [`guest`], with a local APIC in the kernel.
pub fn guest_with_apic(code: &[u8]) -> Option<Guest> {
    let mut guest = bare_guest(code, true)?;
    guest
        .vcpu
        .set_up(&VcpuSetup {
            cpuid: guest.kvm.supported_cpuid().unwrap(),
            msrs: Vec::new(),
            registers: Some(real_mode()),
            x2apic: true,
            extended_state: true,
        })
        .unwrap();
    Some(guest)
}

fn bare_guest(code: &[u8], apic: bool) -> Option<Guest> {
    let kvm = match KvmHypervisor::open() {
        Ok(kvm) => kvm,
        Err(error) if std::env::var_os("LAB_KVM_REQUIRED").is_some() => {
            panic!("KVM is required here: {error}")
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let mut memory = Box::new(Memory([0; MEMORY]));
    memory.0[CODE as usize..][..code.len()].copy_from_slice(code);
    memory.0[DATA as usize..][..4].copy_from_slice(b"abcd");
    let (vm, vcpu) = build(&kvm, &mut memory, apic);
    Some(Guest {
        vcpu,
        vm,
        kvm,
        memory,
    })
}

fn build(kvm: &KvmHypervisor, memory: &mut Memory, apic: bool) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = kvm.create_vm().unwrap();
    if apic {
        vm.create_local_apics().unwrap();
    }
    // SAFETY:
    // - The memory is dropped after VM and vCPU, see the order of `Guest`'s
    //   fields.
    // - Nobody refers to it while the guest runs.
    unsafe { vm.map_memory(0, 0, MEMORY as u64, memory.0.as_mut_ptr()) }.unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    (vm, vcpu)
}

impl Guest {
    /// Replaces VM and vCPU by new ones that have never run. Only the memory
    /// stays.
    pub fn rebuild(&mut self, apic: bool) {
        let (vm, vcpu) = build(&self.kvm, &mut self.memory, apic);
        self.vcpu = vcpu;
        self.vm = vm;
    }
}

/// Runs until something other than I/O happens.
pub fn run(guest: &mut Guest, ops: &Recorder) -> VmExit {
    for _ in 0..1000 {
        match guest.vcpu.run(ops).unwrap() {
            VmExit::Handled => {}
            exit => return exit,
        }
    }
    panic!("the guest ran away: {:?}", ops.0.borrow().last());
}
