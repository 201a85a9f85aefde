//! Two registers of a PC's chipset through which kernels and firmware reset it,
//! a byte each: the reset control register at port 0xCF9 (Intel ICH and later)
//! and system control port A at 0x92 (IBM PS/2).

use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BusDevice;
use crate::event::{EventSink, MachineEvent};

/// Reset control: starts a reset. The other bits choose its kind.
const RESET_CPU: u8 = 1 << 2;
/// System control port A: resets the processor, and lets address line 20 pass.
const FAST_RESET: u8 = 1 << 0;
const A20: u8 = 1 << 1;

/// A register of one byte, one bit of which resets the machine when it is
/// written as 1. That bit reads as 0, the others as they were written.
pub struct ResetControl {
    reset: u8,
    value: AtomicU8,
    events: EventSink,
}

impl ResetControl {
    /// The reset control register.
    #[must_use]
    pub fn new(events: EventSink) -> Self {
        Self {
            reset: RESET_CPU,
            value: AtomicU8::new(0),
            events,
        }
    }

    /// System control port A. Address line 20 is never masked, whatever the
    /// guest writes.
    #[must_use]
    pub fn system_control_a(events: EventSink) -> Self {
        Self {
            reset: FAST_RESET,
            value: AtomicU8::new(A20),
            events,
        }
    }

    /// The register.
    #[must_use]
    pub fn value(&self) -> u8 {
        self.value.load(Ordering::Relaxed)
    }

    /// Sets the register, without an effect.
    pub fn set_value(&self, value: u8) {
        self.value.store(value & !self.reset, Ordering::Relaxed);
    }
}

impl BusDevice for ResetControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.value());
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        self.set_value(value);
        if value & self.reset != 0 {
            self.events.send(MachineEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn one_bit_resets_and_the_others_are_kept() {
        for (make, bit, first) in [
            (ResetControl::new as fn(EventSink) -> ResetControl, 4, 0),
            (ResetControl::system_control_a, 1, 2),
        ] {
            let (sender, events) = channel();
            let register = make(EventSink::new(move |event| sender.send(event).unwrap()));
            let read = || {
                let mut data = [0];
                register.read(0, &mut data);
                data[0]
            };
            assert_eq!(read(), first);
            for value in 0..=255u8 {
                register.write(0, &[value]);
                let expected = (value & bit != 0).then_some(MachineEvent::Reset);
                assert_eq!(events.try_recv().ok(), expected, "{value:#x}");
                assert_eq!(read(), value & !bit);
            }
        }
    }
}
