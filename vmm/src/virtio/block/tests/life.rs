//! What a disk does between activation and its end.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk as bits;
use vm_memory::{Bytes, GuestAddress};

use super::{DATA, FLUSH, Guest, HEADER, Host, OK, STATUS, params};
use crate::virtio::VirtioDevice;
use crate::virtio::block::image::Image;
use crate::virtio::testing::{Buffer, Driver, MEMORY};
use crate::virtio::worker::Worker;

#[test]
fn a_reset_waits_for_requests_and_the_disk_can_be_used_again() {
    let host = Host::new();
    let mut guest = Guest::new(&host);
    for _ in 0..3 {
        for at in 0..4 {
            guest.header(bits::VIRTIO_BLK_T_IN, at);
            guest.driver.offer(&[
                Buffer::readable(HEADER, 16),
                Buffer::writable(DATA + at * 512, 512),
                Buffer::writable(STATUS, 1),
            ]);
        }
        guest.driver.kick();
        guest.block.reset();
        guest.driver = Driver::new(16);
        guest.done = 0;
        guest.block.activate(guest.driver.activation()).unwrap();
        let read = [Buffer::writable(DATA, 512)];
        assert_eq!(guest.request(bits::VIRTIO_BLK_T_IN, 2, &read), (OK, 513));
    }
}

/// Of all of the guest's memory.
fn checksum(driver: &Driver) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut bytes = vec![0; MEMORY as usize];
    driver
        .memory()
        .read_slice(&mut bytes, GuestAddress(0))
        .unwrap();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn a_paused_disk_changes_nothing_and_goes_on_where_it_was() {
    let host = Host::new();
    for (ring, features) in [(true, FLUSH), (true, 0), (false, FLUSH)] {
        let guest = Guest::with(&params(&host, ring), features);
        let mut driver = guest.driver;
        // As many reads and writes as fit, and again whenever some are done.
        for at in 0..5 {
            let kind = [bits::VIRTIO_BLK_T_IN, bits::VIRTIO_BLK_T_OUT][at as usize % 2];
            let mut header = kind.to_le_bytes().to_vec();
            header.extend_from_slice(&[0; 12]);
            driver.put(HEADER + 16 * at, &header);
            let data = DATA + 0x2_0000 * at;
            driver.offer(&[
                Buffer::readable(HEADER + 16 * at, 16),
                match kind {
                    bits::VIRTIO_BLK_T_IN => Buffer::writable(data, 0x1_0000),
                    _ => Buffer::readable(data, 0x1_0000),
                },
                Buffer::writable(STATUS + at, 1),
            ]);
        }
        for at in 5..16 {
            driver.offer_head(3 * (at % 5));
        }
        driver.refill_at_once(1);
        driver.kick();
        let mut done = 0;
        for _ in 0..10 {
            let deadline = Instant::now() + Duration::from_secs(20);
            while driver.used_index() == done {
                assert!(Instant::now() < deadline, "it does not go on");
                std::thread::sleep(Duration::from_millis(1));
            }
            Worker::pause_all(guest.block.workers());
            // What is read late would show.
            driver.put(DATA, &[0; 0x1_0000]);
            let paused = checksum(&driver);
            done = driver.used_index();
            std::thread::sleep(Duration::from_millis(10));
            assert_eq!(checksum(&driver), paused);
            for worker in guest.block.workers() {
                worker.resume();
            }
        }
        assert!(!driver.needs_reset());
        assert!((0..5).all(|at| driver.get(STATUS + at, 1) == [OK]));
    }
}

#[test]
fn who_reads_the_counters_of_a_disk_that_is_gone_does_not_hold_its_image() {
    let host = Host::new();
    let guest = Guest::new(&host);
    let counters = guest.block.counters().unwrap();
    drop(guest);
    // The next boot of the VM opens it, while the last counters are still shown.
    Image::open(&host.options).unwrap();
    assert_eq!(counters.read()["read_ops"], 0);
}
