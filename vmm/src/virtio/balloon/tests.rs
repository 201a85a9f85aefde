use std::time::Duration;

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;

use super::request::{MAX_PAGES, PAGE, listed_pages, reported_pages};
use super::worker::{Role, process_queue};
use super::{Balloon, BalloonParams};
use crate::event::EventSink;
use crate::virtio::testing::{BUFFERS, Buffer, Driver, MEMORY, reset_at_work};
use crate::virtio::{GuestFaults, StopFlag, VirtioDevice};

/// Where the tests' pages lie, counted from the buffers.
const AREA: u64 = 0x10_0000;

fn process(driver: &Driver, role: Role) -> u64 {
    let faults = GuestFaults::new("balloon");
    process_queue(role, &mut driver.queue(), &faults).unwrap();
    faults.count()
}

fn list(pages: &[u64]) -> Vec<u8> {
    pages
        .iter()
        .flat_map(|page| (((BUFFERS + AREA) / PAGE + page) as u32).to_le_bytes())
        .collect()
}

/// Marks eight pages and says afterwards which are still marked.
fn marked(driver: &Driver) -> Vec<u64> {
    (0..8)
        .filter(|page| driver.get(AREA + page * PAGE, 1) == [7])
        .collect()
}

fn mark(driver: &Driver) {
    for page in 0..8 {
        driver.put(AREA + page * PAGE, &[7]);
    }
}

#[test]
fn pages_that_the_guest_gives_up_are_gone_and_no_others() {
    let mut driver = Driver::new(8);
    mark(&driver);
    let bytes = list(&[5, 4, 3, 1, 7]);
    driver.put(0, &bytes);
    driver.offer(&[
        Buffer::readable(0, 6),
        Buffer::readable(6, bytes.len() as u32 - 6),
    ]);
    assert_eq!(process(&driver, Role::Inflate), 0);
    assert_eq!(marked(&driver), [0, 2, 6]);
    assert_eq!(driver.used().len(), 1);
}

#[test]
fn taking_pages_back_changes_nothing() {
    let mut driver = Driver::new(8);
    mark(&driver);
    driver.put(0, &list(&[1, 2]));
    driver.offer(&[Buffer::readable(0, 8)]);
    assert_eq!(process(&driver, Role::Deflate), 0);
    assert_eq!(marked(&driver).len(), 8);
    assert_eq!(driver.used().len(), 1);
}

#[test]
fn reported_pages_are_gone_unless_reported_in_part() {
    let mut driver = Driver::new(8);
    mark(&driver);
    driver.offer(&[
        Buffer::writable(AREA, 2 * PAGE as u32),
        Buffer::writable(AREA + 4 * PAGE - 1, PAGE as u32),
        Buffer::readable(AREA + 6 * PAGE, PAGE as u32),
    ]);
    assert_eq!(process(&driver, Role::Report), 0);
    assert_eq!(marked(&driver), [2, 3, 4, 5, 6, 7]);
}

#[test]
fn pages_that_are_not_there_are_the_drivers_fault() {
    let mut driver = Driver::new(8);
    driver.put(0, &(MEMORY as u32 / PAGE as u32).to_le_bytes());
    driver.put(4, &u32::MAX.to_le_bytes());
    driver.offer(&[Buffer::readable(0, 8)]);
    driver.offer(&[Buffer::readable(0, 7)]);
    assert_eq!(process(&driver, Role::Inflate), 3);
    assert_eq!(driver.used().len(), 2);
}

#[test]
fn a_list_of_all_memory_is_refused_and_one_of_what_drivers_send_is_served() {
    let mut driver = Driver::new(128);
    driver.offer_everything(128, false);
    assert_eq!(process(&driver, Role::Inflate), 1);
    assert_eq!(driver.used().len(), 1);

    let mut driver = Driver::new(8);
    mark(&driver);
    driver.put(0, &list(&vec![2; MAX_PAGES]));
    driver.offer(&[Buffer::readable(0, 4 * MAX_PAGES as u32)]);
    driver.offer(&[Buffer::readable(0, 4 * MAX_PAGES as u32 + 4)]);
    assert_eq!(process(&driver, Role::Inflate), 1);
    assert_eq!(marked(&driver), [0, 1, 3, 4, 5, 6, 7]);
}

#[test]
fn a_reset_does_not_wait_for_a_driver_that_gives_up_all_memory_again_and_again() {
    let events = EventSink::new(|_| {});
    let mut balloon = Balloon::new("balloon", &BalloonParams::default(), events).unwrap();
    let mut driver = Driver::new(128);
    for _ in 0..128 {
        driver.offer_everything(128, false);
    }
    let took = reset_at_work(&mut balloon, &driver);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_request_that_is_stopped_gives_nothing_more_back() {
    let mut driver = Driver::new(8);
    mark(&driver);
    driver.put(0, &list(&[1, 2, 3]));
    driver.offer(&[Buffer::readable(0, 12)]);
    let chain = driver.queue().pop().unwrap().unwrap();
    let stop = StopFlag::default();
    let mut seen = Vec::new();
    listed_pages(&chain, &stop, |run| seen.push(run)).unwrap();
    assert_eq!(seen.len(), 1);
    stop.request_end();
    listed_pages(&chain, &stop, |_| panic!("it was stopped")).unwrap();
    reported_pages(&chain, &stop, |_| panic!("it was stopped"));
}

#[test]
fn the_configuration_shows_what_is_wanted_and_keeps_what_the_guest_says() {
    let params = BalloonParams {
        size: 8 * PAGE + 1,
        deflate_on_oom: true,
        free_page_reporting: true,
    };
    let mut balloon = Balloon::new("balloon", &params, EventSink::new(|_| {})).unwrap();
    assert_eq!(
        (balloon.features(), balloon.queue_sizes().len()),
        (1 << 2 | 1 << 5, 3)
    );
    let size = balloon.size();
    let config = |balloon: &Balloon| {
        let mut bytes = [0; 8];
        balloon.read_config(0, &mut bytes);
        bytes
    };
    assert_eq!(config(&balloon), [8, 0, 0, 0, 0, 0, 0, 0]);
    size.set_wanted(3 * PAGE);
    balloon.write_config(4, &2u32.to_le_bytes());
    balloon.write_config(0, &9u32.to_le_bytes());
    balloon.write_config(5, &[9]);
    assert_eq!(config(&balloon), [3, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(size.actual(), 2 * PAGE);
    balloon.reset();
    assert_eq!(size.actual(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_descriptors_say_nobody_panics(
        descriptors in prop::collection::vec(
            (prop_oneof![0..MEMORY + 100, any::<u64>()], 0u32..20_000, any::<u16>(), 0u16..10),
            8,
        ),
        heads in prop::collection::vec(0u16..8, 0..8),
        role in prop_oneof![Just(Role::Inflate), Just(Role::Report), Just(Role::Deflate)],
    ) {
        let mut driver = Driver::new(8);
        for (index, &(address, length, flags, next)) in descriptors.iter().enumerate() {
            driver.describe(index as u16, Descriptor::new(address, length, flags, next));
        }
        for head in &heads {
            driver.offer_head(*head);
        }
        // The pages given back may be those of the rings: any outcome is fine.
        let _ = process_queue(role, &mut driver.queue(), &GuestFaults::new("balloon"));
    }
}
