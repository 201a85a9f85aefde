use super::*;
use crate::chardev::ConsoleTarget;
use crate::interrupt::MsiRouter;
use crate::interrupt::testing::RecordingVm;

/// Bytes that Linux takes in one round of its interrupt handler at most
/// (serial8250_rx_chars).
const ROUND: usize = 256;

fn port() -> Arc<Serial> {
    let line = MsiVector::new(&MsiRouter::new(RecordingVm::new())).unwrap();
    let output = CharBackend::open(&ConsoleTarget::Null).unwrap();
    Serial::new(Arc::new(line), output, None)
}

fn read(port: &Serial, register: u8) -> u8 {
    let mut byte = [0];
    port.read(register.into(), &mut byte);
    byte[0]
}

/// As Linux handles an interrupt, while `typed` is put into the port whenever that is
/// empty. Returns what was read.
fn handle_interrupt(port: &Serial, typed: &mut &[u8]) -> Vec<u8> {
    let mut taken = Vec::new();
    while read(port, INTERRUPT_IDENTIFICATION) & NO_INTERRUPT == 0 {
        for _ in 0..ROUND {
            if read(port, LINE_STATUS) & DATA_READY == 0 {
                break;
            }
            taken.push(read(port, 0));
            if read(port, LINE_STATUS) & DATA_READY == 0 {
                let fitted = port.receive(typed);
                *typed = &typed[fitted..];
            }
        }
    }
    taken
}

#[test]
fn a_driver_that_stops_reading_in_between_is_told_of_the_rest() {
    let all: Vec<u8> = (0..3 * ROUND + 100).map(|at| at as u8).collect();
    let port = port();
    port.write(INTERRUPT_ENABLE.into(), &[RECEIVED_DATA]);
    // Less than the port has room for, so that a round ends amid what follows.
    let (first, mut typed) = all.split_at(10);
    assert_eq!(port.receive(first), first.len());
    assert_eq!(handle_interrupt(&port, &mut typed), all);
    assert_eq!(read(&port, LINE_STATUS) & DATA_READY, 0);
}

#[test]
fn nothing_is_reported_that_was_not_asked_for() {
    let port = port();
    assert_eq!(port.receive(b"ab"), 2);
    assert_ne!(read(&port, INTERRUPT_IDENTIFICATION) & NO_INTERRUPT, 0);
    port.write(INTERRUPT_ENABLE.into(), &[RECEIVED_DATA]);
    for expected in *b"ab" {
        let reported = read(&port, INTERRUPT_IDENTIFICATION);
        assert_eq!(reported & 0xf, RECEIVED_DATA_AVAILABLE);
        assert_eq!(read(&port, 0), expected);
    }
    assert_ne!(read(&port, INTERRUPT_IDENTIFICATION) & NO_INTERRUPT, 0);
}
