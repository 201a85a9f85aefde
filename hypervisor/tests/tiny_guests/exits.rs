//! What makes a vCPU leave the guest, and what arrives here of it.

use std::time::Duration;

use hypervisor::kvm::KvmHypervisor;
use hypervisor::{Hypervisor, VmExit};

use crate::guest::{Access, Recorder, guest, run};

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
