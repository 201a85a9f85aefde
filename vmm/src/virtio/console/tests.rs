use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;

use super::Console;
use super::worker::{Input, MAX_BYTES, receive, transmit};
use crate::chardev::{CharBackend, ConsoleTarget};
use crate::event::EventSink;
use crate::memory::IoVecs;
use crate::virtio::testing::{BUFFERS, Buffer, Driver, MEMORY};
use crate::virtio::{GuestFaults, VirtioDevice};

fn send(driver: &Driver, end: &CharBackend) -> u64 {
    let faults = GuestFaults::new("console");
    let mut queue = driver.queue();
    let mut buffers = IoVecs::new(Arc::clone(driver.memory()));
    transmit(&mut queue, &mut buffers, end, &faults).unwrap();
    faults.count()
}

#[test]
fn output_goes_to_a_file_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    std::fs::write(&path, "old").unwrap();
    let end = CharBackend::open(&ConsoleTarget::File(path.clone())).unwrap();
    let mut driver = Driver::new(8);
    driver.put(0, b"hello\r\nworld\xff");
    driver.offer(&[Buffer::readable(0, 5), Buffer::readable(5, 2)]);
    driver.offer(&[Buffer::readable(7, 6)]);
    driver.offer(&[Buffer::writable(0, 5)]);
    driver.offer(&[Buffer::readable(MEMORY - BUFFERS - 1, 2)]);
    assert_eq!(send(&driver, &end), 2);
    assert_eq!(std::fs::read(&path).unwrap(), b"hello\r\nworld\xff");
    assert!(driver.used().iter().all(|&(_, length)| length == 0));
    assert_eq!(driver.used().len(), 4);
}

#[test]
fn input_takes_one_buffer_at_a_time_and_waits_for_more() {
    let (mut typist, terminal) = UnixStream::pair().unwrap();
    terminal.set_nonblocking(true).unwrap();
    let mut driver = Driver::new(8);
    let mut queue = driver.queue();
    let mut buffers = IoVecs::new(Arc::clone(driver.memory()));
    let faults = GuestFaults::new("console");
    let mut read = || receive(&mut queue, &mut buffers, &terminal, &faults).unwrap();
    typist.write_all(b"abcdef").unwrap();
    assert_eq!(read(), Input::NoBuffers);
    let first = driver.offer(&[Buffer::writable(0, 1), Buffer::writable(10, 3)]);
    let second = driver.offer(&[Buffer::writable(20, 64)]);
    assert_eq!(
        (read(), read(), read()),
        (Input::Idle, Input::Idle, Input::NoBuffers)
    );
    assert_eq!(driver.used(), [(first, 4), (second, 2)]);
    assert_eq!(
        [driver.get(0, 1), driver.get(10, 3), driver.get(20, 2)].concat(),
        b"abcdef"
    );
    driver.offer(&[Buffer::readable(0, 4)]);
    driver.offer(&[Buffer::writable(0, 4)]);
    assert_eq!(read(), Input::Idle);
    drop(typist);
    assert_eq!(read(), Input::End);
    assert_eq!(faults.count(), 1);
}

#[test]
fn one_chain_never_writes_more_than_a_mebibyte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let end = CharBackend::open(&ConsoleTarget::File(path.clone())).unwrap();
    let mut driver = Driver::new(256);
    driver.offer_everything(256, false);
    assert_eq!(send(&driver, &end), 1);
    assert_eq!(std::fs::metadata(&path).unwrap().len() as usize, MAX_BYTES);
}

#[test]
fn a_reset_does_not_wait_for_a_reader_that_takes_little_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let end = CharBackend::open(&ConsoleTarget::Socket(path.clone())).unwrap();
    let mut reader = UnixStream::connect(&path).unwrap();
    assert!(end.accept());
    let done = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&done);
    let thread = std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while !ended.load(Ordering::Relaxed) && reader.read(&mut bytes).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let mut console = Console::new("console", end.clone(), EventSink::new(|_| {})).unwrap();
    let driver = Driver::new(256);
    // The transmit queue is the second.
    let mut transmit = driver.beside(1);
    for _ in 0..256 {
        transmit.offer_everything(256, false);
    }
    let mut activation = driver.activation();
    activation.queues.push(transmit.queue());
    console.activate(activation).unwrap();
    transmit.kick();
    std::thread::sleep(Duration::from_millis(300));
    // Nobody waits for the stream either.
    let start = std::time::Instant::now();
    assert!(end.input().is_some());
    console.reset();
    let took = start.elapsed();
    done.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn the_size_is_offered_where_there_is_one_and_can_change() {
    let quiet = EventSink::new(|_| {});
    let console = Console::new("console", CharBackend::null(), quiet).unwrap();
    assert_eq!(console.features(), 0);
    console.size().set(0x0102, 0x0304);
    let mut bytes = [0; 4];
    console.read_config(0, &mut bytes);
    assert_eq!(bytes, [2, 1, 4, 3]);
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
        let faults = GuestFaults::new("console");
        let mut queue = driver.queue();
        let mut buffers = IoVecs::new(Arc::clone(driver.memory()));
        let (mut typist, terminal) = UnixStream::pair().unwrap();
        typist.write_all(&[7; 1000]).unwrap();
        terminal.set_nonblocking(true).unwrap();
        let _ = receive(&mut queue, &mut buffers, &terminal, &faults);
        let _ = transmit(&mut driver.queue(), &mut buffers, &CharBackend::null(), &faults);
    }
}
