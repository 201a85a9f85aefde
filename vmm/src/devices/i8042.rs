//! The part of the i8042 keyboard controller through which kernels reset a PC
//! (`reboot=k`). ACPI says that there is no such controller, so nobody probes
//! it for a keyboard.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use vm_superio::{I8042Device, Trigger};

use crate::bus::BusDevice;
use crate::event::{EventSink, MachineEvent};

/// System control port B, among the controller's ports.
const SYSTEM_CONTROL: u64 = 1;
/// The 8254's second channel has run out. There is none, and whoever measures
/// time with it waits for this bit without end.
const TIMER_OUTPUT: u8 = 1 << 5;

struct ResetTrigger(EventSink);

impl Trigger for ResetTrigger {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.send(MachineEvent::Reset);
        Ok(())
    }
}

/// Reads as an idle controller; the reset command resets the machine.
pub struct I8042(Mutex<I8042Device<ResetTrigger>>);

impl I8042 {
    /// A controller that reports resets to `events`.
    #[must_use]
    pub fn new(events: EventSink) -> Self {
        Self(Mutex::new(I8042Device::new(ResetTrigger(events))))
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [byte] = data {
            if offset == SYSTEM_CONTROL {
                *byte = TIMER_OUTPUT;
                return;
            }
            let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *byte = device.read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let &[byte] = data {
            let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(()) = device.write(offset as u8, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn timer_that_is_not_there_has_run_out() {
        let device = I8042::new(EventSink::new(|_| ()));
        let mut control = [0];
        device.read(1, &mut control);
        assert_eq!(control, [0x20]);
    }

    #[test]
    fn only_the_reset_command_resets() {
        let (sender, events) = channel();
        let device = I8042::new(EventSink::new(move |event| sender.send(event).unwrap()));
        let mut status = [0xff];
        device.read(4, &mut status);
        assert_eq!(status, [0]);
        device.write(0, &[0xfe]);
        device.write(4, &[0xd1]);
        device.write(3, &[0xfe, 0xfe]);
        assert!(events.try_recv().is_err());
        device.write(4, &[0xfe]);
        assert_eq!(events.try_recv(), Ok(MachineEvent::Reset));
    }
}
