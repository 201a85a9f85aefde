use std::io::{self, Read, repeat};

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;

use super::Rng;
use super::worker::process_queue;
use crate::event::EventSink;
use crate::virtio::GuestFaults;
use crate::virtio::testing::{BUFFERS, Buffer, Driver, MEMORY};

fn process(driver: &Driver, source: &mut impl Read) -> u64 {
    let faults = GuestFaults::new("rng");
    process_queue(&mut driver.queue(), source, &faults).unwrap();
    faults.count()
}

#[test]
fn all_buffers_of_a_request_are_filled_and_nothing_else() {
    let mut driver = Driver::new(8);
    let head = driver.offer(&[
        Buffer::readable(0, 16),
        Buffer::writable(100, 10),
        Buffer::writable(200, 300),
    ]);
    assert_eq!(process(&driver, &mut repeat(7)), 0);
    assert_eq!(driver.used(), [(head, 310)]);
    assert_eq!(driver.get(0, 100), [0; 100]);
    assert_eq!(driver.get(100, 11), [[7; 10].as_slice(), &[0]].concat());
    assert_eq!(driver.get(200, 301), [[7; 300].as_slice(), &[0]].concat());
}

#[test]
fn a_source_that_ends_gives_what_it_has() {
    let mut driver = Driver::new(8);
    let head = driver.offer(&[Buffer::writable(0, 1000)]);
    assert_eq!(process(&driver, &mut repeat(7).take(300)), 0);
    assert_eq!(driver.used(), [(head, 300)]);
}

#[test]
fn a_source_that_fails_gives_the_request_back_empty() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    let mut driver = Driver::new(8);
    let head = driver.offer(&[Buffer::writable(0, 1000)]);
    // No fault of the driver's.
    assert_eq!(process(&driver, &mut Broken), 0);
    assert_eq!(driver.used(), [(head, 0)]);
}

#[test]
fn one_request_never_takes_more_than_64_kib() {
    let mut driver = Driver::new(8);
    let head = driver.offer(&[Buffer::writable(0, 8 << 20)]);
    process(&driver, &mut repeat(7));
    assert_eq!(driver.used(), [(head, 64 << 10)]);
}

#[test]
fn requests_without_usable_buffers_go_back_empty_and_are_counted() {
    let mut driver = Driver::new(8);
    driver.offer(&[Buffer::readable(0, 16)]);
    driver.offer(&[Buffer::writable(MEMORY - BUFFERS - 4, 16)]);
    driver.offer(&[Buffer::writable(0, 0)]);
    assert_eq!(process(&driver, &mut repeat(7)), 3);
    assert!(driver.used().iter().all(|&(_, written)| written == 0));
    assert_eq!(driver.used().len(), 3);
}

#[test]
fn a_source_without_bytes_keeps_the_request_until_it_has_some() {
    let mut source = Waiting { left: 0 };
    let mut driver = Driver::new(8);
    let head = driver.offer(&[Buffer::writable(0, 100)]);
    let mut queue = driver.queue();
    let faults = GuestFaults::new("rng");
    assert!(!process_queue(&mut queue, &mut source, &faults).unwrap());
    assert!(driver.used().is_empty());
    source.left = 60;
    assert!(process_queue(&mut queue, &mut source, &faults).unwrap());
    assert_eq!(driver.used(), [(head, 60)]);
    assert_eq!(faults.count(), 0);
}

/// Has only so many bytes now.
struct Waiting {
    left: usize,
}

impl Read for Waiting {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.left.min(bytes.len());
        self.left -= count;
        match count {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

#[test]
fn what_may_keep_its_reader_waiting_is_not_a_source() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::RWXU, 0).unwrap();
    for path in [path.as_path(), folder.path()] {
        let made = Rng::new("rng", path, EventSink::new(|_| {}));
        assert_eq!(made.err().unwrap().kind(), io::ErrorKind::InvalidInput);
    }
    assert!(Rng::new("rng", "/dev/urandom".as_ref(), EventSink::new(|_| {})).is_ok());
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
        let faults = GuestFaults::new("rng");
        // A queue that is broken says so; any other outcome is fine.
        let _ = process_queue(&mut driver.queue(), &mut repeat(7), &faults);
        prop_assert!(driver.used().len() <= heads.len());
    }
}
