//! A vCPU's exit counters go on on another VM.

use hypervisor::x86::state::ExitCountersState;
use hypervisor::{Error, VmExit};

use crate::guest::{Guest, Recorder, guest};

/// 20 OUTs to port 0x80 and one to port 0x81, for ever.
#[rustfmt::skip]
const OUTS: [u8; 11] = [
    0xb9, 0x14, 0x00,       // mov cx, 20
    0xe6, 0x80,             // out 0x80, al
    0xe2, 0xfc,             // loop
    0xe6, 0x81,             // out 0x81, al
    0xeb, 0xf5,             // jmp to the beginning
];

fn run(guest: &mut Guest, accesses: usize) {
    let ops = Recorder::default();
    for _ in 0..accesses {
        assert_eq!(guest.vcpu.run(&ops).unwrap(), VmExit::Handled);
    }
}

/// The counters, and what the statistics file says at the same time; `None` where
/// the kernel has no such attribute.
fn counters(guest: &Guest) -> Option<ExitCountersState> {
    let counters = guest.vcpu.exit_counters().unwrap()?;
    let sample = guest.vcpu.stats().unwrap().sample().unwrap();
    assert_eq!(sample.exits, counters.exits);
    assert_eq!(sample.guest_cycles, Some(counters.guest_cycles));
    assert_eq!(sample.arrays.as_ref(), Some(&counters.arrays));
    Some(counters)
}

#[test]
fn counters_are_there_from_version_2_on() {
    let Some(guest) = guest(&OUTS) else { return };
    let version = guest.vm.exit_stats_support().version();
    assert_eq!(
        counters(&guest).is_some(),
        version >= 2,
        "version {version}"
    );
}

#[test]
fn counters_that_were_set_read_back_the_same_and_go_on() {
    let Some(mut first) = guest(&OUTS) else {
        return;
    };
    run(&mut first, 100);
    let Some(before) = counters(&first) else {
        return;
    };
    let sum = |state: &ExitCountersState| state.arrays.exits.iter().sum::<u64>();
    assert!(before.exits >= 100 && sum(&before) == before.exits);

    let mut second = guest(&OUTS).unwrap();
    second.vcpu.set_exit_counters(&before).unwrap();
    assert_eq!(counters(&second), Some(before.clone()));
    run(&mut second, 50);
    let after = counters(&second).unwrap();
    assert!(after.exits >= before.exits + 50 && sum(&after) == after.exits);
    let grew = |new: &[u64], old: &[u64]| new.iter().zip(old).all(|(new, old)| new >= old);
    assert!(grew(&after.arrays.exits, &before.arrays.exits));
    assert!(grew(&after.arrays.cycles, &before.arrays.cycles));
    assert!(after.guest_cycles > before.guest_cycles);
}

#[test]
fn counters_of_a_vcpu_that_has_run_cannot_be_set() {
    let Some(mut guest) = guest(&OUTS) else {
        return;
    };
    let Some(empty) = counters(&guest) else {
        return;
    };
    guest.vcpu.set_exit_counters(&empty).unwrap();
    run(&mut guest, 1);
    let refused = guest.vcpu.set_exit_counters(&empty);
    assert!(matches!(refused, Err(Error::Ioctl { .. })), "{refused:?}");
    assert!(counters(&guest).unwrap().exits >= 1);
}

#[test]
fn counters_of_another_shape_are_refused() {
    let Some(mut guest) = guest(&OUTS) else {
        return;
    };
    let Some(state) = counters(&guest) else {
        return;
    };
    let mut refused = |spoil: fn(&mut ExitCountersState)| {
        let mut spoilt = state.clone();
        spoil(&mut spoilt);
        assert!(guest.vcpu.set_exit_counters(&spoilt).is_err(), "{spoilt:?}");
    };
    refused(|state| state.isa = None);
    refused(|state| state.arrays.exits[1] = 1);
    refused(|state| state.arrays.exits.fill(u64::MAX / 2));
    refused(|state| state.arrays.preempted_cycles.clear());
    assert_eq!(counters(&guest), Some(state));
}
