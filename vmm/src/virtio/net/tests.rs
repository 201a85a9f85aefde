//! Both halves of a pair, with a datagram socket in the tap's place: it keeps
//! packets apart and is full or empty as a tap is.

use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;

use super::counters::{NetCounters, PairCounters};
use super::header::{HEADER_LENGTH, MAX_PACKET, NUM_BUFFERS};
use super::receive::{Received, Receiver};
use super::transmit::{Transmitted, Transmitter};
use crate::virtio::rate_limit::{BucketParams, LimitParams, RateLimit, RateLimiter};
use crate::virtio::testing::{BUFFERS, Buffer, Driver, MEMORY};
use crate::virtio::{DeviceCounters, GuestFaults};

struct Bench {
    driver: Driver,
    host: UnixDatagram,
    tap: UnixDatagram,
    faults: Arc<GuestFaults>,
    counters: Arc<PairCounters>,
}

impl Bench {
    fn new(size: u16) -> Self {
        let (host, tap) = UnixDatagram::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        tap.set_nonblocking(true).unwrap();
        Self {
            driver: Driver::new(size),
            host,
            tap,
            faults: Arc::new(GuestFaults::new("net")),
            counters: Arc::default(),
        }
    }

    fn receiver(&self, mergeable: bool) -> Receiver {
        Receiver::new(
            self.driver.queue(),
            mergeable,
            Arc::clone(&self.faults),
            Arc::clone(&self.counters),
        )
    }

    fn transmitter(&self) -> Transmitter {
        Transmitter::new(
            self.driver.queue(),
            Arc::clone(&self.faults),
            Arc::clone(&self.counters),
        )
    }

    fn receive(&self, receiver: &mut Receiver) -> Received {
        receiver.run(self.tap.as_fd(), &mut None).unwrap()
    }

    fn counters(&self) -> Vec<u64> {
        NetCounters::new(vec![Arc::clone(&self.counters)])
            .read()
            .into_values()
            .collect()
    }
}

/// A packet that can be told from others.
fn packet(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

/// What the driver sees of `packet`, which lies in `buffers` chains.
fn seen(packet: &[u8], buffers: u16) -> Vec<u8> {
    let mut seen = packet.to_vec();
    seen[NUM_BUFFERS..HEADER_LENGTH].copy_from_slice(&buffers.to_le_bytes());
    seen
}

#[test]
fn a_packet_goes_into_one_chain_if_it_fits() {
    let mut bench = Bench::new(8);
    let first = bench
        .driver
        .offer(&[Buffer::writable(0, 5), Buffer::writable(100, 200)]);
    bench.driver.offer(&[Buffer::writable(1000, 205)]);
    let mut receiver = bench.receiver(true);
    let sent = packet(60, 1);
    bench.host.send(&sent).unwrap();
    assert_eq!(bench.receive(&mut receiver), Received::NoPacket);
    assert_eq!(bench.driver.used(), [(first, 60)]);
    let got = [bench.driver.get(0, 5), bench.driver.get(100, 55)].concat();
    assert_eq!(got, seen(&sent, 1));
    assert_eq!(bench.counters(), [48, 1, 0, 0]);
    assert_eq!(bench.driver.interrupts(), 1);
}

#[test]
fn chains_taken_ahead_are_put_back_and_no_packet_is_lost() {
    let mut bench = Bench::new(8);
    let heads: Vec<u16> = (0..2)
        .map(|at| bench.driver.offer(&[Buffer::writable(at * 64, 64)]))
        .collect();
    let mut receiver = bench.receiver(true);
    assert_eq!(bench.receive(&mut receiver), Received::NoPacket);
    receiver.put_back();
    // More than there is room for: part of it lies in the chains.
    let long = packet(150, 4);
    bench.host.send(&long).unwrap();
    assert_eq!(bench.receive(&mut receiver), Received::NoBuffers);
    receiver.put_back();
    assert!(bench.driver.used().is_empty());
    let last = bench.driver.offer(&[Buffer::writable(128, 64)]);
    assert_eq!(bench.receive(&mut receiver), Received::NoBuffers);
    let used = [(heads[0], 64), (heads[1], 64), (last, 22)];
    assert_eq!(bench.driver.used(), used);
    assert_eq!(bench.driver.get(0, 150), seen(&long, 3));
}

#[test]
fn a_long_packet_takes_as_many_chains_as_it_needs() {
    let mut bench = Bench::new(8);
    let heads: Vec<u16> = (0..4)
        .map(|at| bench.driver.offer(&[Buffer::writable(at * 64, 64)]))
        .collect();
    let mut receiver = bench.receiver(true);
    let (long, short) = (packet(130, 2), packet(20, 3));
    bench.host.send(&long).unwrap();
    bench.host.send(&short).unwrap();
    assert_eq!(bench.receive(&mut receiver), Received::NoBuffers);
    let used = bench.driver.used();
    assert_eq!(
        used,
        [
            (heads[0], 64),
            (heads[1], 64),
            (heads[2], 2),
            (heads[3], 20)
        ]
    );
    assert_eq!(bench.driver.get(0, 130), seen(&long, 3));
    assert_eq!(bench.driver.get(192, 20), seen(&short, 1));
    assert_eq!(bench.driver.interrupts(), 1);
}

#[test]
fn a_packet_longer_than_all_buffers_waits_for_more_and_stays_whole() {
    let mut bench = Bench::new(8);
    bench.driver.offer(&[Buffer::writable(0, 64)]);
    let mut receiver = bench.receiver(true);
    let sent = packet(150, 4);
    bench.host.send(&sent).unwrap();
    bench.host.send(&packet(20, 5)).unwrap();
    for at in 1..3 {
        assert_eq!(bench.receive(&mut receiver), Received::NoBuffers);
        assert_eq!(bench.driver.used(), []);
        bench.driver.offer(&[Buffer::writable(64 * at, 64)]);
    }
    assert_eq!(bench.receive(&mut receiver), Received::NoBuffers);
    assert_eq!(bench.driver.get(0, 150), seen(&sent, 3));
    assert_eq!(bench.driver.used().len(), 3);
    assert_eq!(bench.counters()[1], 1);
    bench.driver.offer(&[Buffer::writable(640, 64)]);
    assert_eq!(bench.receive(&mut receiver), Received::NoBuffers);
    assert_eq!(bench.counters()[1], 2);
}

#[test]
fn without_merging_a_packet_that_is_too_long_is_dropped() {
    let mut bench = Bench::new(8);
    let head = bench.driver.offer(&[Buffer::writable(0, 64)]);
    let mut receiver = bench.receiver(false);
    bench.host.send(&packet(65, 1)).unwrap();
    bench.host.send(&packet(64, 2)).unwrap();
    assert_eq!(bench.receive(&mut receiver), Received::NoBuffers);
    assert_eq!(bench.driver.used(), [(head, 64)]);
    assert_eq!(bench.driver.get(0, 64), seen(&packet(64, 2), 1));
    assert_eq!(bench.faults.count(), 1);
}

#[test]
fn buffers_that_cannot_be_received_into_go_back_empty() {
    let mut bench = Bench::new(8);
    bench.driver.offer(&[Buffer::readable(0, 64)]);
    bench.driver.offer(&[Buffer::writable(0, 0)]);
    bench
        .driver
        .offer(&[Buffer::writable(MEMORY - BUFFERS - 4, 16)]);
    let good = bench.driver.offer(&[Buffer::writable(0, 64)]);
    let mut receiver = bench.receiver(true);
    bench.host.send(&packet(30, 1)).unwrap();
    bench.receive(&mut receiver);
    let used = bench.driver.used();
    assert_eq!(used.iter().map(|&(_, length)| length).sum::<u32>(), 30);
    assert_eq!(used.last(), Some(&(good, 30)));
    assert_eq!((used.len(), bench.faults.count()), (4, 3));
}

#[test]
fn tiny_buffers_for_a_long_packet_lose_it_and_nothing_hangs() {
    let mut bench = Bench::new(2048);
    for _ in 0..1500 {
        bench.driver.offer(&[Buffer::writable(0, 1)]);
    }
    let mut receiver = bench.receiver(true);
    bench.host.send(&packet(1200, 1)).unwrap();
    assert_eq!(bench.receive(&mut receiver), Received::NoPacket);
    assert_eq!((bench.driver.used().len(), bench.faults.count()), (0, 1));
    bench.host.send(&packet(900, 1)).unwrap();
    bench.receive(&mut receiver);
    assert_eq!(bench.driver.used().len(), 900);
}

#[test]
fn packets_leave_as_they_are_and_nonsense_does_not() {
    let mut bench = Bench::new(16);
    let sent = packet(100, 7);
    bench.driver.put(0, &sent);
    bench
        .driver
        .offer(&[Buffer::readable(0, 7), Buffer::readable(7, 93)]);
    bench.driver.offer(&[Buffer::readable(0, 11)]);
    bench
        .driver
        .offer(&[Buffer::readable(0, 60), Buffer::writable(60, 40)]);
    bench
        .driver
        .offer(&[Buffer::readable(0, MAX_PACKET as u32 + 1)]);
    bench
        .driver
        .offer(&[Buffer::readable(MEMORY - BUFFERS - 4, 60)]);
    let mut transmitter = bench.transmitter();
    let outcome = transmitter.run(bench.tap.as_fd(), &mut None).unwrap();
    assert_eq!(outcome, Transmitted::NoPacket);
    let mut got = [0; 200];
    assert_eq!(bench.host.recv(&mut got).unwrap(), 100);
    assert_eq!(got[..100], sent);
    assert!(bench.host.recv(&mut got).is_err());
    assert_eq!((bench.driver.used().len(), bench.faults.count()), (5, 4));
    assert_eq!(bench.counters(), [0, 0, 88, 1]);
}

#[test]
fn a_full_tap_loses_nothing() {
    let mut bench = Bench::new(1024);
    for at in 0..1000u64 {
        bench.driver.put(at * 100, &packet(100, at as u8));
        bench.driver.offer(&[Buffer::readable(at * 100, 100)]);
    }
    let mut transmitter = bench.transmitter();
    let mut stopped = 0;
    let mut got = Vec::new();
    loop {
        let outcome = transmitter.run(bench.tap.as_fd(), &mut None).unwrap();
        let mut bytes = [0; 200];
        while let Ok(length) = bench.host.recv(&mut bytes) {
            got.push(bytes[..length].to_vec());
        }
        if outcome == Transmitted::NoPacket {
            break;
        }
        assert_eq!(outcome, Transmitted::TapFull);
        stopped += 1;
    }
    assert!(stopped > 0);
    let expected: Vec<Vec<u8>> = (0..1000u64).map(|at| packet(100, at as u8)).collect();
    assert!(got == expected);
}

#[test]
fn a_limit_holds_packets_back_until_it_is_readable() {
    let mut bench = Bench::new(8);
    for at in 0..3 {
        bench.driver.offer(&[Buffer::readable(at * 100, 100)]);
    }
    let limit = RateLimit::new(&LimitParams {
        bandwidth: None,
        operations: Some(BucketParams {
            size: 2,
            one_time_burst: 0,
            refill_time: Duration::from_millis(100),
        }),
    });
    let mut limiter = Some(RateLimiter::new(limit).unwrap());
    let mut transmitter = bench.transmitter();
    let mut run = |limiter: &mut _| transmitter.run(bench.tap.as_fd(), limiter).unwrap();
    assert_eq!(run(&mut limiter), Transmitted::Limited);
    assert_eq!(bench.driver.used().len(), 2);
    // Blocks until the timer fires.
    limiter.as_mut().unwrap().resume();
    assert_eq!(run(&mut limiter), Transmitted::NoPacket);
    assert_eq!(bench.driver.used().len(), 3);
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
        mergeable in any::<bool>(),
    ) {
        let mut bench = Bench::new(8);
        // Rings and descriptors lie below the buffers: they may be written to
        // as well, which makes for more surprises.
        for (index, &(address, length, flags, next)) in descriptors.iter().enumerate() {
            bench.driver.describe(index as u16, Descriptor::new(address, length, flags, next));
        }
        for head in &heads {
            bench.driver.offer_head(*head);
        }
        for length in [12, 60, 1500, 9000] {
            bench.host.send(&packet(length, 1)).unwrap();
        }
        // A queue that is broken says so; any other outcome is fine.
        let _ = bench.receiver(mergeable).run(bench.tap.as_fd(), &mut None);
        let _ = bench.transmitter().run(bench.tap.as_fd(), &mut None);
    }

    #[test]
    fn packets_arrive_whole_and_in_order_whatever_the_buffers(
        lengths in prop::collection::vec(12usize..3000, 1..30),
        sizes in prop::collection::vec(1u32..2000, 1..8),
    ) {
        let mut bench = Bench::new(256);
        let mut receiver = bench.receiver(true);
        let mut offered = Vec::new();
        let mut at = 0;
        for &length in &lengths {
            bench.host.send(&packet(length, length as u8)).unwrap();
        }
        let mut sizes = sizes.iter().cycle();
        for _ in 0..100 {
            if bench.receive(&mut receiver) == Received::NoPacket {
                break;
            }
            let &size = sizes.next().unwrap();
            bench.driver.offer(&[Buffer::writable(at, size)]);
            offered.push((at, size));
            at += u64::from(size);
        }
        let mut used = bench.driver.used().into_iter().zip(&offered);
        for &length in &lengths {
            let sent = packet(length, length as u8);
            let mut got = Vec::new();
            let mut count = 0;
            while got.len() < length {
                let Some(((_, written), &(at, size))) = used.next() else {
                    // The buffers were too few for the rest.
                    return Ok(());
                };
                prop_assert!(written <= size);
                got.extend(bench.driver.get(at, written as usize));
                count += 1;
            }
            prop_assert_eq!(got, seen(&sent, count));
        }
    }
}
