//! The registers of hardware-reduced ACPI that switch the machine off or reset
//! it: sleep control, sleep status and reset, one byte each.

use crate::bus::BusDevice;
use crate::event::{EventSink, MachineEvent};

/// Sleep type that the tables give for state S5.
pub const S5_SLEEP_TYPE: u8 = 5;
/// Value that the tables give for the reset register.
pub const RESET_VALUE: u8 = 1;

const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = 2;

// Layout of the sleep control register (ACPI 6.5, table 4.28).
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// Stateless: each register acts on the write itself and reads as zero.
#[derive(Debug)]
pub struct PowerRegisters(EventSink);

impl PowerRegisters {
    /// Registers that report to `events`.
    #[must_use]
    pub fn new(events: EventSink) -> Self {
        Self(events)
    }
}

impl BusDevice for PowerRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == S5_SLEEP_TYPE => {
                self.0.send(MachineEvent::PowerOff);
            }
            RESET if value == RESET_VALUE => self.0.send(MachineEvent::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn s5_switches_off_and_the_reset_value_resets_and_nothing_else_does() {
        let (sender, events) = channel();
        let device = PowerRegisters::new(EventSink::new(move |event| sender.send(event).unwrap()));
        for offset in 0..3 {
            for value in 0..=255u8 {
                device.write(offset, &[value]);
                let expected = match (offset, value) {
                    (0, _) if value & 0x3c == 0x34 => Some(MachineEvent::PowerOff),
                    (2, 1) => Some(MachineEvent::Reset),
                    _ => None,
                };
                assert_eq!(events.try_recv().ok(), expected, "{offset} {value:#x}");
            }
        }
        device.write(0, &[0x34, 0]);
        assert!(events.try_recv().is_err());
    }
}
