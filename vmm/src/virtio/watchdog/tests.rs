use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;

use super::device::Watchdog;
use super::worker::answer_pings;
use crate::event::{EventSink, MachineEvent};
use crate::virtio::testing::{BUFFERS, Buffer, Driver, MEMORY};
use crate::virtio::worker::Worker;
use crate::virtio::{GuestFaults, VirtioDevice};

const TIMEOUT: Duration = Duration::from_secs(1);

fn watchdog() -> (Watchdog, Receiver<MachineEvent>) {
    let (sender, events) = channel();
    let sink = EventSink::new(move |event| sender.send(event).unwrap());
    (
        Watchdog::with_timeout("watchdog", sink, TIMEOUT).unwrap(),
        events,
    )
}

#[test]
fn pings_are_answered_with_a_one() {
    let mut driver = Driver::new(8);
    let head = driver.offer(&[Buffer::writable(0, 4)]);
    let faults = GuestFaults::new("watchdog");
    assert!(answer_pings(&mut driver.queue(), &faults).unwrap());
    assert_eq!(driver.get(0, 2), [1, 0]);
    assert_eq!(driver.used(), [(head, 1)]);
}

#[test]
fn what_is_no_ping_does_not_count_as_one() {
    let mut driver = Driver::new(8);
    driver.offer(&[Buffer::readable(0, 4)]);
    driver.offer(&[Buffer::writable(0, 0)]);
    driver.offer(&[Buffer::writable(MEMORY - BUFFERS, 1)]);
    let faults = GuestFaults::new("watchdog");
    assert!(!answer_pings(&mut driver.queue(), &faults).unwrap());
    assert_eq!(faults.count(), 3);
}

#[test]
fn a_guest_that_falls_silent_is_reset() {
    let (mut watchdog, events) = watchdog();
    let mut driver = Driver::new(8);
    watchdog.activate(driver.activation()).unwrap();
    for at in 0..3 {
        driver.offer(&[Buffer::writable(at, 1)]);
        driver.kick();
        assert_eq!(
            events.recv_timeout(TIMEOUT / 2),
            Err(RecvTimeoutError::Timeout)
        );
    }
    assert_eq!(events.recv_timeout(TIMEOUT * 20), Ok(MachineEvent::Reset));
}

#[test]
fn a_guest_that_stands_still_is_not_silent() {
    let (mut watchdog, events) = watchdog();
    let mut driver = Driver::new(8);
    watchdog.activate(driver.activation()).unwrap();
    driver.offer(&[Buffer::writable(0, 1)]);
    driver.kick();
    std::thread::sleep(TIMEOUT / 3);
    Worker::pause_all(watchdog.workers());
    assert!(events.recv_timeout(TIMEOUT * 3).is_err());
    for worker in watchdog.workers() {
        worker.resume();
    }
    // All of the time is left, or more.
    assert!(events.recv_timeout(TIMEOUT / 2).is_err());
    assert_eq!(events.recv_timeout(TIMEOUT * 20), Ok(MachineEvent::Reset));
}

#[test]
fn a_guest_that_never_pinged_or_let_go_of_the_device_is_left_alone() {
    let (mut watchdog, events) = watchdog();
    let mut driver = Driver::new(8);
    watchdog.activate(driver.activation()).unwrap();
    assert!(events.recv_timeout(TIMEOUT * 2).is_err());
    driver.offer(&[Buffer::writable(0, 1)]);
    driver.kick();
    assert!(events.recv_timeout(TIMEOUT / 3).is_err());
    watchdog.reset();
    assert!(events.recv_timeout(TIMEOUT * 2).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_descriptors_say_nobody_panics(
        descriptors in prop::collection::vec(
            (prop_oneof![0..MEMORY + 100, any::<u64>()], any::<u32>(), any::<u16>(), 0u16..10),
            8,
        ),
        heads in prop::collection::vec(0u16..10, 0..8),
    ) {
        let mut driver = Driver::new(8);
        for (index, &(address, length, flags, next)) in descriptors.iter().enumerate() {
            driver.describe(index as u16, Descriptor::new(address, length, flags, next));
        }
        for head in &heads {
            driver.offer_head(*head);
        }
        let _ = answer_pings(&mut driver.queue(), &GuestFaults::new("watchdog"));
    }
}
