//! The whole service on its thread's side of things: a driver with queues in
//! guest memory, and programs of the host on real sockets.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::connection::BUFFER;
use super::device::{Vsock, VsockParams};
use super::packet::{
    HEADER_LENGTH, HOST_CID, Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_SEND, STREAM,
};
use crate::acceptor::testing::{exhaust, is_child};
use crate::event::EventSink;
use crate::virtio::testing::{Buffer, Driver};
use crate::virtio::worker::Worker;
use crate::virtio::{Activation, VirtioDevice};

const CID: u32 = 5;
const SIZE: u16 = 128;
/// Buffers for packets to the guest; a chain takes two descriptors.
const BUFFERS: u16 = SIZE / 2;
/// Each buffer has so much room, header included.
const ROOM: u64 = 8192;
const WAIT: Duration = Duration::from_secs(5);

/// A guest, its device, and a folder of the host's sockets.
struct Bench {
    folder: TempDir,
    device: Vsock,
    to_guest: Driver,
    from_guest: Driver,
    received: usize,
    sent: u64,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let quiet = EventSink::new(|_| {});
        let params = VsockParams {
            cid: CID,
            socket: folder.path().join("v"),
        };
        let mut device = Vsock::new("vsock", &params, quiet).unwrap();
        let mut to_guest = Driver::new(SIZE);
        let from_guest = to_guest.beside(1);
        for at in 0..u64::from(BUFFERS) {
            to_guest.offer(&[
                Buffer::writable(at * ROOM, HEADER_LENGTH as u32),
                Buffer::writable(at * ROOM + HEADER_LENGTH as u64, ROOM as u32 - 44),
            ]);
        }
        let Activation {
            memory,
            features,
            mut queues,
            interrupt,
        } = to_guest.activation();
        queues.push(from_guest.queue());
        device
            .activate(Activation {
                memory,
                features,
                queues,
                interrupt,
            })
            .unwrap();
        Self {
            folder,
            device,
            to_guest,
            from_guest,
            received: 0,
            sent: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The guest sends a packet.
    fn send(&mut self, header: Header, data: &[u8]) {
        // Behind the buffers for packets to the guest.
        let at = u64::from(BUFFERS) * ROOM + self.sent * 0x1_0000;
        self.sent = (self.sent + 1) % 16;
        let header = Header {
            length: data.len() as u32,
            ..header
        };
        self.send_raw(at, &[header.to_bytes().as_slice(), data].concat());
    }

    fn send_raw(&mut self, at: u64, bytes: &[u8]) {
        let before = self.from_guest.used().len();
        self.from_guest.put(at, bytes);
        self.from_guest
            .offer(&[Buffer::readable(at, bytes.len() as u32)]);
        self.from_guest.kick();
        self.wait(|bench| bench.from_guest.used().len() > before);
    }

    fn wait(&self, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..WAIT.as_millis() {
            if done(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("nothing happens");
    }

    /// The guest takes the next packet.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let index = self.received;
        self.wait(|bench| bench.to_guest.used().len() > index);
        let (head, length) = self.to_guest.used()[index];
        self.received += 1;
        let at = u64::from(head / 2) * ROOM;
        let bytes = self.to_guest.get(at, length as usize);
        let (header, data) = bytes.split_first_chunk().unwrap();
        let header = Header::from_bytes(header);
        assert_eq!(header.length as usize, data.len());
        assert_eq!(
            (header.source_cid, header.target_cid),
            (HOST_CID, u64::from(CID))
        );
        (header, data.to_vec())
    }

    fn receive_operation(&mut self, operation: Operation) -> Header {
        let (header, data) = self.receive();
        assert_eq!(Operation::from_number(header.operation), Some(operation));
        assert!(data.is_empty());
        header
    }

    /// A program of the host connects to a port of the guest, which accepts.
    fn connect_to_guest(&mut self, port: u32) -> (UnixStream, Header) {
        let mut program = UnixStream::connect(self.path("v")).unwrap();
        program.set_read_timeout(Some(WAIT)).unwrap();
        program
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        let request = self.receive_operation(Operation::Request);
        assert_eq!(request.target_port, port);
        let guest = Header {
            buffer: 1 << 20,
            ..packet(port, request.source_port, Operation::Response)
        };
        self.send(guest, &[]);
        let expected = format!("OK {}\n", request.source_port);
        let mut answer = vec![0; expected.len()];
        program.read_exact(&mut answer).unwrap();
        assert_eq!(answer, expected.as_bytes());
        (program, guest)
    }

    /// The guest connects to a port of the host, where a program accepts.
    fn connect_to_host(&mut self, port: u32) -> (UnixStream, Header) {
        let listener = UnixListener::bind(self.path(&format!("v_{port}"))).unwrap();
        let guest = Header {
            buffer: 1 << 20,
            ..packet(1000, port, Operation::Request)
        };
        self.send(guest, &[]);
        let response = self.receive_operation(Operation::Response);
        assert_eq!((response.source_port, response.target_port), (port, 1000));
        assert_eq!(response.buffer, BUFFER);
        let (program, _) = listener.accept().unwrap();
        program.set_read_timeout(Some(WAIT)).unwrap();
        (program, guest)
    }
}

fn packet(from: u32, to: u32, operation: Operation) -> Header {
    Header {
        source_cid: u64::from(CID),
        target_cid: HOST_CID,
        source_port: from,
        target_port: to,
        kind: STREAM,
        operation: operation.number(),
        ..Header::default()
    }
}

fn with(header: Header, operation: Operation) -> Header {
    Header {
        operation: operation.number(),
        ..header
    }
}

#[test]
fn a_program_of_the_host_reaches_the_guest() {
    let mut bench = Bench::new();
    let (mut program, guest) = bench.connect_to_guest(52);
    program.write_all(b"question").unwrap();
    assert_eq!(bench.receive().1, b"question");
    bench.send(with(guest, Operation::Data), b"answer");
    let mut answer = [0; 6];
    program.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

#[test]
fn data_behind_the_wish_goes_to_the_guest() {
    let mut bench = Bench::new();
    let mut program = UnixStream::connect(bench.path("v")).unwrap();
    program.write_all(b"CONNECT 7\nearly").unwrap();
    let request = bench.receive_operation(Operation::Request);
    let guest = packet(7, request.source_port, Operation::Response);
    bench.send(
        Header {
            buffer: 100,
            ..guest
        },
        &[],
    );
    assert_eq!(bench.receive().1, b"early");
}

#[test]
fn a_guest_reaches_a_program_of_the_host_or_hears_that_there_is_none() {
    let mut bench = Bench::new();
    bench.send(packet(1000, 99, Operation::Request), &[]);
    let reset = bench.receive_operation(Operation::Reset);
    assert_eq!((reset.source_port, reset.target_port), (99, 1000));
    let (mut program, guest) = bench.connect_to_host(99);
    bench.send(with(guest, Operation::Data), b"hello");
    let mut bytes = [0; 5];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
fn several_connections_stay_apart() {
    let mut bench = Bench::new();
    let (mut first, first_guest) = bench.connect_to_guest(1);
    let (mut second, second_guest) = bench.connect_to_guest(1);
    assert_ne!(first_guest.target_port, second_guest.target_port);
    bench.send(with(second_guest, Operation::Data), b"2");
    bench.send(with(first_guest, Operation::Data), b"1");
    let mut byte = [0];
    first.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"1");
    second.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"2");
    drop(first);
    let shutdown = bench.receive_operation(Operation::Shutdown);
    assert_eq!(shutdown.source_port, first_guest.target_port);
    second.write_all(b"still there").unwrap();
    assert_eq!(bench.receive().1, b"still there");
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    let mut bench = Bench::new();
    let (mut program, guest) = bench.connect_to_guest(1);
    bench.send(
        Header {
            buffer: 10,
            ..with(guest, Operation::CreditUpdate)
        },
        &[],
    );
    program.write_all(b"0123456789abcdef").unwrap();
    assert_eq!(bench.receive().1, b"0123456789");
    bench.receive_operation(Operation::CreditRequest);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(bench.to_guest.used().len(), bench.received);
    let update = Header {
        buffer: 10,
        forwarded: 4,
        ..with(guest, Operation::CreditUpdate)
    };
    bench.send(update, &[]);
    assert_eq!(bench.receive().1, b"abcd");
    bench.receive_operation(Operation::CreditRequest);
    bench.send(
        Header {
            forwarded: 14,
            ..update
        },
        &[],
    );
    assert_eq!(bench.receive().1, b"ef");
}

#[test]
fn a_guest_hears_of_room_when_the_host_has_taken_enough() {
    let mut bench = Bench::new();
    let (mut program, guest) = bench.connect_to_host(5);
    bench.send(with(guest, Operation::CreditRequest), &[]);
    assert_eq!(
        bench.receive_operation(Operation::CreditUpdate).forwarded,
        0
    );
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; 2 << 20];
        program.read_exact(&mut bytes).unwrap();
        bytes
    });
    let (mut sent, mut forwarded) = (0u32, 0u32);
    while sent < 2 << 20 {
        // As a guest does: never more under way than the host has room for.
        while sent.wrapping_sub(forwarded) > BUFFER - 4096 {
            forwarded = bench.receive_operation(Operation::CreditUpdate).forwarded;
            bench.recycle();
        }
        bench.send(with(guest, Operation::Data), &[(sent >> 12) as u8; 4096]);
        sent += 4096;
    }
    let bytes = reader.join().unwrap();
    assert!(
        bytes
            .chunks(4096)
            .enumerate()
            .all(|(at, chunk)| chunk.iter().all(|&byte| byte == at as u8))
    );
}

#[test]
fn a_guest_that_sends_more_than_it_may_loses_the_connection() {
    let mut bench = Bench::new();
    // Nobody reads.
    let (_program, guest) = bench.connect_to_host(5);
    let data = vec![7; 32 << 10];
    for _ in 0..64 {
        bench.send(with(guest, Operation::Data), &data);
    }
    bench.receive_operation(Operation::CreditUpdate);
    loop {
        let (header, _) = bench.receive();
        match Operation::from_number(header.operation) {
            Some(Operation::CreditUpdate) => {}
            Some(Operation::Reset) => break,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn each_direction_ends_by_itself() {
    let mut bench = Bench::new();
    let (mut program, guest) = bench.connect_to_guest(1);
    program.write_all(b"last words").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.receive().1, b"last words");
    assert_eq!(
        bench.receive_operation(Operation::Shutdown).flags,
        SHUTDOWN_SEND
    );
    bench.send(with(guest, Operation::Data), b"reply");
    let end = Header {
        flags: SHUTDOWN_BOTH,
        ..with(guest, Operation::Shutdown)
    };
    bench.send(end, &[]);
    let mut reply = Vec::new();
    program.read_to_end(&mut reply).unwrap();
    assert_eq!(reply, b"reply");
    bench.receive_operation(Operation::Reset);
}

#[test]
fn a_program_that_goes_away_ends_both_directions() {
    let mut bench = Bench::new();
    let (program, guest) = bench.connect_to_guest(1);
    drop(program);
    assert_eq!(
        bench.receive_operation(Operation::Shutdown).flags,
        SHUTDOWN_BOTH
    );
    bench.send(with(guest, Operation::Data), b"too late");
    bench.receive_operation(Operation::Reset);
    bench.send(with(guest, Operation::Data), b"again");
    bench.receive_operation(Operation::Reset);
}

#[test]
fn a_guest_that_refuses_or_resets_ends_the_program_s_connection() {
    let mut bench = Bench::new();
    let mut program = UnixStream::connect(bench.path("v")).unwrap();
    program.set_read_timeout(Some(WAIT)).unwrap();
    program.write_all(b"CONNECT 3\n").unwrap();
    let request = bench.receive_operation(Operation::Request);
    bench.send(packet(3, request.source_port, Operation::Reset), &[]);
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    let (mut program, guest) = bench.connect_to_guest(4);
    bench.send(with(guest, Operation::Reset), &[]);
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn who_wishes_nonsense_is_let_go() {
    let bench = Bench::new();
    let mut program = UnixStream::connect(bench.path("v")).unwrap();
    program.set_read_timeout(Some(WAIT)).unwrap();
    program.write_all(b"HELLO\n").unwrap();
    assert_eq!(program.read(&mut [0; 8]).unwrap_or(0), 0);
}

#[test]
fn headers_that_make_no_sense_are_answered_with_a_reset_or_not_at_all() {
    let mut bench = Bench::new();
    let (_program, guest) = bench.connect_to_guest(1);
    let answered = [
        Header {
            kind: 2,
            ..packet(9, 9, Operation::Request)
        },
        Header {
            operation: 77,
            ..packet(9, 9, Operation::Request)
        },
        packet(9, 9, Operation::Data),
        packet(9, 9, Operation::Response),
        packet(9, 9, Operation::Shutdown),
        // A connection that exists.
        with(guest, Operation::Request),
    ];
    for header in answered {
        bench.send(header, &[]);
        let reset = bench.receive_operation(Operation::Reset);
        assert_eq!(
            (reset.target_port, reset.source_port),
            (header.source_port, header.target_port)
        );
    }
    let silent = [
        packet(9, 9, Operation::Reset),
        Header {
            kind: 2,
            ..packet(9, 9, Operation::Reset)
        },
        Header {
            source_cid: 6,
            ..packet(9, 9, Operation::Request)
        },
        Header {
            target_cid: 1,
            ..packet(9, 9, Operation::Request)
        },
    ];
    for header in silent {
        bench.send(header, &[]);
    }
    bench.send_raw(0x10_0000, &[7; 43]);
    let long = Header {
        length: 1,
        ..packet(8, 8, Operation::Data)
    };
    bench.send_raw(0x10_0000, &long.to_bytes());
    assert_eq!(bench.receive_operation(Operation::Reset).target_port, 8);
}

#[test]
fn a_reset_of_the_device_ends_all_connections_and_the_socket_stays() {
    let mut bench = Bench::new();
    let (mut program, _) = bench.connect_to_guest(1);
    bench.device.reset();
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    assert!(UnixStream::connect(bench.path("v")).is_ok());
    let path = bench.path("v");
    drop(bench.device);
    assert!(!path.exists());
}

#[test]
fn connections_outlast_a_pause_and_lose_nothing() {
    let mut bench = Bench::new();
    let (mut program, guest) = bench.connect_to_guest(1);
    for round in 0..3u8 {
        Worker::pause_all(bench.device.workers());
        program.write_all(&[round; 5]).unwrap();
        // Has not been taken by anybody yet.
        let mut waiting = UnixStream::connect(bench.path("v")).unwrap();
        waiting.write_all(b"CONNECT 2\n").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(bench.to_guest.used().len(), bench.received);
        bench.device.workers()[0].resume();
        let mut packets = [bench.receive(), bench.receive()];
        packets.sort_by_key(|(header, _)| header.target_port);
        assert_eq!(packets[0].1, [round; 5]);
        assert_eq!(packets[1].0.target_port, 2);
        bench.send(with(guest, Operation::Data), b"back");
        let mut data = [0; 4];
        program.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"back");
    }
}

impl Bench {
    /// Gives the buffers of packets that were taken back to the device.
    fn recycle(&mut self) {
        let used = self.to_guest.used();
        let head = used[self.received - 1].0;
        self.to_guest.offer_head(head);
        self.to_guest.kick();
    }
}

#[test]
fn a_reset_does_not_wait_for_a_guest_that_never_stops_sending() {
    let mut bench = Bench::new();
    // Is answered with a reset each time.
    let nonsense = Header {
        source_cid: CID.into(),
        target_cid: HOST_CID,
        kind: STREAM,
        operation: Operation::CreditRequest.number(),
        ..Header::default()
    };
    let at = u64::from(BUFFERS) * ROOM;
    bench.from_guest.put(at, &nonsense.to_bytes());
    for _ in 0..SIZE {
        bench
            .from_guest
            .offer(&[Buffer::readable(at, HEADER_LENGTH as u32)]);
    }
    bench.to_guest.refill_at_once(2);
    bench.from_guest.kick();
    std::thread::sleep(Duration::from_millis(100));
    let (sender, stopped) = std::sync::mpsc::channel();
    let mut device = bench.device;
    std::thread::spawn(move || {
        device.reset();
        sender.send(()).unwrap();
    });
    stopped.recv_timeout(WAIT).unwrap();
}

#[test]
fn a_client_that_there_is_no_descriptor_for_is_refused_and_the_rest_goes_on() {
    const NAME: &str = "virtio::vsock::tests::\
        a_client_that_there_is_no_descriptor_for_is_refused_and_the_rest_goes_on";
    if !is_child(NAME) {
        return;
    }
    let mut bench = Bench::new();
    let (mut program, guest) = bench.connect_to_guest(52);
    let _listener = UnixListener::bind(bench.path("v_7")).unwrap();
    let taken = exhaust(1);
    for _ in 0..20 {
        let mut refused = UnixStream::connect(bench.path("v")).unwrap();
        assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    }
    let taken_too = exhaust(0);
    bench.send(packet(1000, 7, Operation::Request), &[]);
    bench.receive_operation(Operation::Reset);
    bench.send(with(guest, Operation::Data), b"still here");
    let mut bytes = [0; 10];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
    assert!(!bench.to_guest.needs_reset());
    drop((taken, taken_too));
    bench.connect_to_guest(53);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_the_guest_sends_the_device_lives(
        packets in prop::collection::vec(
            (0u32..3, 0u32..3, 0u16..9, 0u32..4, any::<u32>(), any::<u32>(), 0usize..50, any::<bool>()),
            1..40,
        ),
    ) {
        let mut bench = Bench::new();
        let _listener = UnixListener::bind(bench.path("v_1")).unwrap();
        for (from, to, operation, flags, buffer, forwarded, length, honest) in packets {
            let header = Header {
                operation,
                flags,
                buffer,
                forwarded,
                length: if honest { length as u32 } else { buffer },
                ..packet(from, to, Operation::Data)
            };
            let bytes = [header.to_bytes().as_slice(), &vec![7; length]].concat();
            bench.send_raw(0x10_0000, &bytes);
        }
        prop_assert!(!bench.to_guest.needs_reset());
    }
}
