//! A guest whose state is taken, and that goes on on another VM.

use hypervisor::kvm::KvmHypervisor;
use hypervisor::x86::state::{ClockPolicy, RunState, VcpuState};
use hypervisor::{Error, Hypervisor, VmExit};

use crate::guest::{Access, Guest, Recorder, guest, guest_with_apic};

/// 100 OUTs to port 0x80 that count down, then one to port 0x81.
#[rustfmt::skip]
const COUNTDOWN: [u8; 15] = [
    0xb9, 0x64, 0x00,       // mov cx, 100
    0x89, 0xc8,             // again: mov ax, cx
    0xe7, 0x80,             // out 0x80, ax
    0xe2, 0xfa,             // loop again
    0xe6, 0x81,             // out 0x81, al
    0xeb, 0xfe,             // jmp $
    0x90, 0x90,
];

/// Lets the guest finish the I/O that it was stopped in, as every taking of its
/// state wants.
fn complete_pending_io(guest: &mut Guest, ops: &Recorder) {
    let kick = guest.vcpu.kick_handle().unwrap();
    kick.set_immediate_exit(true);
    assert_eq!(guest.vcpu.run(ops).unwrap(), VmExit::Interrupted);
    kick.set_immediate_exit(false);
}

/// Runs until `number` accesses have come.
fn run_accesses(guest: &mut Guest, ops: &Recorder, number: usize) {
    for _ in 0..number {
        assert_eq!(guest.vcpu.run(ops).unwrap(), VmExit::Handled);
    }
    complete_pending_io(guest, ops);
}

fn countdown_survives(start: fn(&[u8]) -> Option<Guest>, apic: bool) {
    let Some(mut guest) = start(&COUNTDOWN) else {
        return;
    };
    let ops = Recorder::default();
    // At every place of the countdown once.
    for _ in 0..100 {
        run_accesses(&mut guest, &ops, 1);
        let (vm, vcpu) = (guest.vm.state().unwrap(), guest.vcpu.state().unwrap());
        guest.rebuild(apic);
        guest.vm.set_state(&vm, ClockPolicy::Continue).unwrap();
        guest.vcpu.set_state(&vcpu, ClockPolicy::Continue).unwrap();
    }
    run_accesses(&mut guest, &ops, 1);
    let expected: Vec<Access> = (1..=100_u16)
        .rev()
        .map(|left| Access::Out(0x80, left.to_le_bytes().to_vec()))
        .chain([Access::Out(0x81, vec![1])])
        .collect();
    assert_eq!(*ops.0.borrow(), expected);
}

#[test]
fn a_guest_goes_on_on_another_vm() {
    countdown_survives(guest, false);
}

#[test]
fn a_guest_with_a_local_apic_goes_on_on_another_vm() {
    countdown_survives(guest_with_apic, true);
}

/// A vCPU whose registers of every kind were written by the guest.
fn written_everywhere() -> Option<(Guest, VcpuState)> {
    if KvmHypervisor::open().is_ok_and(|kvm| kvm.isa().is_none()) {
        eprintln!("skipped: a KVM without hardware has no FPU in real mode");
        return None;
    }
    #[rustfmt::skip]
    let mut guest = guest_with_apic(&[
        0xd9, 0xe8,                         // fld1
        0xb8, 0x34, 0x12,                   // mov ax, 0x1234
        0x0f, 0x23, 0xc0,                   // mov dr0, eax
        0x66, 0xb9, 0x74, 0x01, 0x00, 0x00, // mov ecx, IA32_SYSENTER_CS
        0x66, 0x31, 0xd2,                   // xor edx, edx
        0x0f, 0x30,                         // wrmsr
        0x66, 0xb9, 0x32, 0x08, 0x00, 0x00, // mov ecx, x2APIC timer's LVT entry
        0x66, 0xb8, 0xe1, 0x00, 0x02, 0x00, // mov eax, periodic, vector 0xe1
        0x0f, 0x30,                         // wrmsr
        0xe6, 0x80,                         // out 0x80, al
        0xeb, 0xfe,                         // jmp $
    ])?;
    let ops = Recorder::default();
    run_accesses(&mut guest, &ops, 1);
    let state = guest.vcpu.state().unwrap();
    Some((guest, state))
}

#[test]
fn what_the_guest_wrote_is_in_the_state() {
    let Some((_guest, state)) = written_everywhere() else {
        return;
    };
    assert_eq!(state.run_state, RunState::Runnable);
    assert_eq!(state.debug.addresses[0], 0x1234);
    assert!(state.msrs.contains(&(0x174, 0x1234)), "{:x?}", state.msrs);
    // FXSAVE's tag byte: register 7 is in use; and 1.0 is in its place.
    assert_eq!(state.xsave[1] & 0xff, 0x80);
    assert_eq!(state.xsave[8..10], [0, 0x8000_0000]);
    // The timer's vector and mode, masked as long as the APIC is disabled by
    // software (Intel SDM vol. 3, "Local Vector Table").
    assert_eq!(state.local_apic[0x320..0x324], [0xe1, 0, 0x03, 0]);
    // No leaf is there twice.
    let mut leaves: Vec<_> = state.cpuid.iter().map(|l| (l.function, l.index)).collect();
    leaves.sort_unstable();
    assert!(
        leaves.windows(2).all(|pair| pair[0] != pair[1]),
        "{leaves:x?}"
    );
}

#[test]
fn a_state_that_was_set_reads_back_the_same() {
    let Some((mut guest, state)) = written_everywhere() else {
        return;
    };
    guest.rebuild(true);
    guest.vcpu.set_state(&state, ClockPolicy::Continue).unwrap();
    let mut again = guest.vcpu.state().unwrap();
    assert!(again.tsc.value >= state.tsc.value);
    assert_eq!(again.tsc.offset, state.tsc.offset);
    again.tsc = state.tsc;
    // One after the other, for a message that can be read.
    assert_eq!(again.cpuid, state.cpuid);
    assert_eq!(again.msrs, state.msrs);
    assert_eq!(again.events, state.events);
    assert_eq!(again.special, state.special);
    assert!(again == state, "{again:?}\n{state:?}");
}

#[test]
fn a_counter_that_is_set_by_value_does_not_jump() {
    let Some((mut guest, state)) = written_everywhere() else {
        return;
    };
    let second = u64::from(state.tsc.khz) * 1000;
    let mut state = state;
    state.tsc.value += 1000 * second;
    guest.rebuild(true);
    guest.vcpu.set_state(&state, ClockPolicy::Value).unwrap();
    let after = guest.vcpu.state().unwrap().tsc.value;
    let passed = after.wrapping_sub(state.tsc.value);
    assert!(passed < 100 * second, "{passed} ticks at {second} a second");
}

#[test]
fn a_state_survives_json() {
    let Some((_guest, state)) = written_everywhere() else {
        return;
    };
    let text = serde_json::to_string(&state).unwrap();
    assert!(
        serde_json::from_str::<VcpuState>(&text).unwrap() == state,
        "{text}"
    );
}

#[test]
fn a_state_whose_parts_have_another_length_is_refused() {
    let Some((mut guest, state)) = written_everywhere() else {
        return;
    };
    let mut refused = |spoil: fn(&mut VcpuState), part: &str| {
        let mut spoilt = state.clone();
        spoil(&mut spoilt);
        guest.rebuild(true);
        let outcome = guest.vcpu.set_state(&spoilt, ClockPolicy::Continue);
        assert!(
            matches!(outcome, Err(Error::State { .. } | Error::TooManyEntries(_))),
            "{part}: {outcome:?}"
        );
    };
    refused(|state| state.xsave.truncate(1023), "extended state");
    refused(|state| state.xsave.extend([0; 4096]), "extended state");
    refused(|state| state.local_apic.truncate(1023), "local APIC");
    refused(|state| state.xcrs = vec![(0, 1); 17], "XCRs");
    refused(
        |state| state.nested = Some(vec![0; 1 << 16]),
        "nested state",
    );
}
