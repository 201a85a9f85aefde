//! How the machine tells the guest of changes: registers that the ACPI tables
//! describe, and one interrupt for all of them.
//!
//! | offset | register | read | written |
//! | --- | --- | --- | --- |
//! | 0 | events | what happened since the last read | – |
//! | 4 | added | PCI slots with a new device, once | – |
//! | 8 | leaving | PCI slots whose device is to be ejected, once | – |
//! | 12 | ejected | – | PCI slots whose device the guest has ejected |
//!
//! The control thread reports, vCPU threads read and eject.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::interrupt::MsiVector;

/// Bit of the events: look at the PCI bus.
pub const EVENT_PCI: u32 = 1 << 0;
/// Bit of the events: somebody pressed the power button.
pub const EVENT_POWER_BUTTON: u32 = 1 << 1;

const REGISTER: usize = 4;

#[derive(Debug, Default)]
struct Registers {
    events: u32,
    added: u32,
    leaving: u32,
}

/// The registers as they are saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotplugState {
    events: u32,
    added: u32,
    leaving: u32,
}

/// The registers.
pub struct HotplugController {
    line: Arc<MsiVector>,
    registers: Mutex<Registers>,
    /// Takes the device off the bus; called without the lock.
    eject: Box<dyn Fn(u8) + Send + Sync>,
}

impl HotplugController {
    /// Registers that interrupt through `line` and eject devices through
    /// `eject`.
    pub fn new(line: Arc<MsiVector>, eject: impl Fn(u8) + Send + Sync + 'static) -> Self {
        Self {
            line,
            registers: Mutex::new(Registers::default()),
            eject: Box::new(eject),
        }
    }

    /// There is a new device in a PCI slot.
    pub fn device_added(&self, slot: u8) {
        self.report(EVENT_PCI, |registers| registers.added |= bit(slot));
    }

    /// The guest is to eject the device in a PCI slot.
    pub fn request_unplug(&self, slot: u8) {
        self.report(EVENT_PCI, |registers| registers.leaving |= bit(slot));
    }

    /// What was reported of this slot and not read yet counts no more.
    pub fn forget(&self, slot: u8) {
        let mut registers = self.lock();
        registers.added &= !bit(slot);
        registers.leaving &= !bit(slot);
    }

    /// The power button is pressed.
    pub fn press_power_button(&self) {
        self.report(EVENT_POWER_BUTTON, |_| {});
    }

    /// What was reported and not read yet.
    #[must_use]
    pub fn save(&self) -> HotplugState {
        let Registers {
            events,
            added,
            leaving,
        } = *self.lock();
        HotplugState {
            events,
            added,
            leaving,
        }
    }

    /// Puts it back.
    pub fn restore(&self, state: &HotplugState) {
        let HotplugState {
            events,
            added,
            leaving,
        } = *state;
        *self.lock() = Registers {
            events,
            added,
            leaving,
        };
    }

    fn report(&self, event: u32, change: impl FnOnce(&mut Registers)) {
        let mut registers = self.lock();
        registers.events |= event;
        change(&mut registers);
        drop(registers);
        self.line.raise();
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

impl BusDevice for HotplugController {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if data.len() != REGISTER {
            return;
        }
        let mut registers = self.lock();
        let register = match offset {
            0 => &mut registers.events,
            4 => &mut registers.added,
            8 => &mut registers.leaving,
            _ => return,
        };
        data.copy_from_slice(&std::mem::take(register).to_le_bytes());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (12, &[a, b, c, d]) = (offset, data) {
            let slots = u32::from_le_bytes([a, b, c, d]);
            for slot in (0..32).filter(|&slot| slots & bit(slot) != 0) {
                (self.eject)(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::interrupt::MsiRouter;
    use crate::interrupt::testing::RecordingVm;

    fn controller() -> (HotplugController, Receiver<u8>) {
        let (sender, ejected) = channel();
        let line = MsiVector::new(&MsiRouter::new(RecordingVm::new())).unwrap();
        let controller =
            HotplugController::new(Arc::new(line), move |slot| sender.send(slot).unwrap());
        (controller, ejected)
    }

    fn read(controller: &HotplugController, offset: u64) -> u32 {
        let mut data = [0; 4];
        controller.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn each_report_is_seen_once_in_its_register() {
        let (controller, _ejected) = controller();
        controller.device_added(3);
        controller.request_unplug(31);
        controller.press_power_button();
        let all = || [0, 4, 8, 12].map(|offset| read(&controller, offset));
        let events = EVENT_PCI | EVENT_POWER_BUTTON;
        assert_eq!(all(), [events, 1 << 3, 1 << 31, 0]);
        assert_eq!(all(), [0; 4]);
    }

    #[test]
    fn what_is_forgotten_is_not_read() {
        let (controller, _ejected) = controller();
        for slot in [3, 4] {
            controller.device_added(slot);
            controller.request_unplug(slot);
        }
        controller.forget(3);
        assert_eq!([4, 8].map(|at| read(&controller, at)), [1 << 4; 2]);
    }

    #[test]
    fn only_a_whole_write_of_the_last_register_ejects() {
        let (controller, ejected) = controller();
        for offset in 0..16 {
            for width in [1, 2, 3, 4] {
                controller.write(offset, &[0b1010, 0, 0, 0x80][..width]);
                let slots: Vec<u8> = ejected.try_iter().collect();
                let expected: &[u8] = if (offset, width) == (12, 4) {
                    &[1, 3, 31]
                } else {
                    &[]
                };
                assert_eq!(slots, expected);
            }
        }
    }
}
