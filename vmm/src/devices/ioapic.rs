//! The I/O APIC (82093AA), for the few interrupts that are no messages.
//!
//! It lives here and not in the kernel because of what Linux does to it at
//! boot: it reads and rewrites every pin several times, and the kernel's model
//! always has 24 of them, for some 500 exits. This one has as many pins as the
//! machine has lines, and its registers are read from memory that the guest
//! sees without an exit; only writes come here.
//!
//! Pins are edge-triggered: an unmasked pin is an interrupt message, which the
//! hypervisor delivers by itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::interrupt::{InterruptError, MsiMessage, MsiRouter, MsiVector};
use crate::memory::ReadOnlyWindow;
use crate::memory::layout::{HOTPLUG_GSI, IOAPIC_FIRST_GSI, IOAPIC_PINS, LAPIC_START, SERIAL_GSI};
use crate::state::StateError;

// Offsets of the two registers through which the others are reached.
const SELECT: u64 = 0x00;
const DATA: u64 = 0x10;

// Numbers of the others.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const REDIRECTION: u8 = 0x10;

/// The original's version; later ones have a register to end interrupts.
const VERSION_NUMBER: u32 = 0x11;
const ID_MASK: u32 = 0x0f00_0000;

// Fields of a redirection entry.
const DELIVERY_MODE: u64 = 7 << 8;
const LOGICAL: u64 = 1 << 11;
const READ_ONLY: u64 = 1 << 12 | 1 << 14;
const MASKED: u64 = 1 << 16;

const PINS: usize = IOAPIC_PINS as usize;

/// Who is connected to which pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// The first serial port.
    Serial = (SERIAL_GSI - IOAPIC_FIRST_GSI) as isize,
    /// The registers that tell of devices that come and go.
    Hotplug = (HOTPLUG_GSI - IOAPIC_FIRST_GSI) as isize,
}

/// The register file, without any effect on the world.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Registers {
    select: u8,
    id: u32,
    entries: [u64; PINS],
}

impl Registers {
    fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [MASKED; PINS],
        }
    }

    /// What the data register shows.
    fn read(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_NUMBER | (IOAPIC_PINS - 1) << 16,
            _ => match self.entry() {
                Some((pin, high)) => (self.entries[pin] >> (32 * u32::from(high))) as u32,
                None => 0,
            },
        }
    }

    /// Takes a write of the data register; says which pin it changed.
    fn write(&mut self, value: u32) -> Option<usize> {
        if self.select == ID {
            self.id = value & ID_MASK;
        }
        let (pin, high) = self.entry()?;
        let shift = 32 * u32::from(high);
        let old = self.entries[pin];
        let kept = old & !(u64::from(u32::MAX) << shift);
        let new = (kept | u64::from(value) << shift) & !READ_ONLY;
        self.entries[pin] = new;
        (new != old).then_some(pin)
    }

    /// Pin and half that the selected register belongs to.
    fn entry(&self) -> Option<(usize, bool)> {
        let index = usize::from(self.select.checked_sub(REDIRECTION)?);
        (index < 2 * PINS).then_some((index / 2, index % 2 == 1))
    }
}

/// An I/O APIC as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    select: u8,
    id: u32,
    /// The redirection entry of each pin.
    entries: Vec<u64>,
    /// By pin: it was raised while it was masked.
    pending: Vec<bool>,
}

/// The message that an entry stands for; `None` while it is masked.
fn message(entry: u64) -> Option<MsiMessage> {
    if entry & MASKED != 0 {
        return None;
    }
    let destination = entry >> 56;
    // Bits 8 to 14 of the destination, as in a message's address.
    let high = entry >> 49 & 0x7f;
    let logical = u64::from(entry & LOGICAL != 0);
    Some(MsiMessage {
        address: u64::from(LAPIC_START) | destination << 12 | high << 5 | logical << 2,
        data: (entry & (DELIVERY_MODE | 0xff)) as u32,
    })
}

/// The device. Its lock is taken by vCPU threads; routing is changed under it,
/// so that two of them cannot leave an older message behind.
pub struct IoApic {
    registers: Mutex<Registers>,
    pins: Vec<Arc<MsiVector>>,
    /// What the guest reads. Absent in tests only.
    window: Option<ReadOnlyWindow>,
}

impl IoApic {
    /// An I/O APIC whose registers the guest reads through `window`.
    pub fn new(
        router: &Arc<MsiRouter>,
        window: Option<ReadOnlyWindow>,
    ) -> Result<Arc<Self>, InterruptError> {
        let pins = (0..PINS)
            .map(|_| MsiVector::new(router).map(Arc::new))
            .collect::<Result<_, _>>()?;
        let ioapic = Self {
            registers: Mutex::new(Registers::new()),
            pins,
            window,
        };
        Ok(Arc::new(ioapic))
    }

    /// The line that ends at a pin, for the device that raises it.
    #[must_use]
    pub fn line(&self, pin: Pin) -> Arc<MsiVector> {
        Arc::clone(&self.pins[pin as usize])
    }

    /// The registers, and which masked pins were raised.
    ///
    /// # Errors
    /// Interrupts that are on their way cannot be waited for.
    pub fn save(&self) -> Result<IoApicState, InterruptError> {
        let Registers {
            select,
            id,
            entries,
        } = self.registers().clone();
        self.pins.iter().try_for_each(|pin| pin.flush())?;
        Ok(IoApicState {
            select,
            id,
            entries: entries.to_vec(),
            pending: self.pins.iter().map(|pin| pin.is_pending()).collect(),
        })
    }

    /// Puts them back, in an I/O APIC that is as after a reset.
    ///
    /// # Errors
    /// Another number of pins.
    pub fn restore(&self, state: &IoApicState) -> Result<(), StateError> {
        let IoApicState {
            select,
            id,
            entries,
            pending,
        } = state;
        let entries: [u64; PINS] = entries[..].try_into().map_err(|_| {
            StateError::unfit("the I/O APIC", &format_args!("{} pins", entries.len()))
        })?;
        for (pin, _) in self.pins.iter().zip(pending).filter(|(_, p)| **p) {
            pin.raise();
        }
        let mut registers = self.registers();
        *registers = Registers {
            select: *select,
            id: id & ID_MASK,
            entries: entries.map(|entry| entry & !READ_ONLY),
        };
        for (pin, &entry) in registers.entries.iter().enumerate() {
            self.route(pin, entry);
        }
        self.show(SELECT, u32::from(*select));
        self.show(DATA, registers.read());
        Ok(())
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, offset: u64, value: u32) {
        if let Some(window) = &self.window {
            window.store(offset as usize, &value.to_le_bytes());
        }
    }

    fn route(&self, pin: usize, entry: u64) {
        let vector = &self.pins[pin];
        let outcome = match message(entry) {
            Some(message) => vector.connect(message),
            None => vector.disconnect(),
        };
        if let Err(error) = outcome {
            log::error!("I/O APIC pin {pin}: {error}");
        }
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.registers();
        let value = match offset {
            SELECT => u32::from(registers.select),
            DATA => registers.read(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.registers();
        match (offset, data) {
            // The upper bytes of the register are reserved.
            (SELECT, [select, ..]) => {
                registers.select = *select;
                self.show(SELECT, u32::from(*select));
            }
            (DATA, &[a, b, c, d]) => {
                if let Some(pin) = registers.write(u32::from_le_bytes([a, b, c, d])) {
                    self.route(pin, registers.entries[pin]);
                }
            }
            _ => return,
        }
        self.show(DATA, registers.read());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::testing::{Call, RecordingVm};

    fn device() -> (Arc<RecordingVm>, Arc<IoApic>) {
        let vm = RecordingVm::new();
        let router = MsiRouter::new(vm.clone());
        (vm, IoApic::new(&router, None).unwrap())
    }

    fn read(device: &IoApic, register: u8) -> u32 {
        device.write(SELECT, &[register, 0, 0, 0]);
        let mut data = [0; 4];
        device.read(DATA, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(device: &IoApic, register: u8, value: u32) {
        device.write(SELECT, &[register, 0, 0, 0]);
        device.write(DATA, &value.to_le_bytes());
    }

    #[test]
    fn it_has_as_many_masked_pins_as_its_version_says() {
        let (_, device) = device();
        assert_eq!(read(&device, VERSION), 0x11 | (IOAPIC_PINS - 1) << 16);
        for pin in 0..PINS as u8 {
            assert_eq!(read(&device, REDIRECTION + 2 * pin), 1 << 16);
            assert_eq!(read(&device, REDIRECTION + 2 * pin + 1), 0);
        }
        assert_eq!(read(&device, REDIRECTION + 2 * PINS as u8), 0);
    }

    #[test]
    fn an_unmasked_pin_is_a_message_and_a_masked_one_is_none() {
        let (vm, device) = device();
        write(&device, REDIRECTION + 1, 3 << 24);
        assert!(
            !vm.calls()
                .iter()
                .any(|call| matches!(call, Call::Connect(_)))
        );
        write(&device, REDIRECTION, 0x0000_0931);
        let message = MsiMessage {
            address: 0xfee0_3004,
            data: 0x131,
        };
        assert!(vm.calls().iter().any(|call| match call {
            Call::Routes(routes) => routes.iter().any(|route| route.1 == message),
            _ => false,
        }));
        write(&device, REDIRECTION, 1 << 16 | 0x931);
        assert!(matches!(vm.calls().last(), Some(Call::Disconnect(_))));
    }

    #[test]
    fn read_only_bits_stay_zero_and_an_equal_write_changes_nothing() {
        let (vm, device) = device();
        write(&device, REDIRECTION, u32::MAX);
        assert_eq!(u64::from(read(&device, REDIRECTION)) & READ_ONLY, 0);
        let calls = vm.calls().len();
        write(&device, REDIRECTION, u32::MAX);
        assert_eq!(vm.calls().len(), calls);
        write(&device, ID, u32::MAX);
        assert_eq!(read(&device, ID), 0x0f00_0000);
    }

    #[test]
    fn a_saved_ioapic_goes_on_in_another_one() {
        let (_, first) = device();
        write(&first, REDIRECTION + 1, 3 << 24);
        write(&first, REDIRECTION, 0x0000_0931);
        // Raised while it is masked.
        first.line(Pin::Hotplug).raise();
        let saved = first.save().unwrap();
        let (vm, second) = device();
        second.restore(&saved).unwrap();
        assert_eq!(second.save().unwrap(), saved);
        assert_eq!(read(&second, REDIRECTION + 1), 3 << 24);
        assert!(vm.calls().contains(&Call::Connect(0)));
        assert!(second.line(Pin::Hotplug).is_pending());
        let mut fewer = saved;
        fewer.entries.pop();
        assert!(second.restore(&fewer).is_err());
    }

    #[test]
    fn accesses_of_odd_widths_and_places_are_harmless() {
        let (_, device) = device();
        for offset in 0..0x20 {
            for width in [1, 2, 4, 8] {
                device.write(offset, &[0xff; 8][..width]);
                device.read(offset, &mut [0; 8][..width]);
            }
        }
    }
}
