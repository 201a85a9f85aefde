//! The 16550 serial port: the register model is vm-superio's, output goes to the
//! host's end of the console, input comes from there through a thread of its own.

mod input;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::chardev::CharBackend;
use crate::interrupt::MsiVector;
use crate::state::StateError;

pub use input::{InputError, SerialInput};

struct IrqTrigger(Arc<MsiVector>);

impl Trigger for IrqTrigger {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.raise();
        Ok(())
    }
}

/// Tells the input thread that the guest has taken everything.
struct DrainNotice(Option<Arc<EventFd>>);

impl SerialEvents for DrainNotice {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        if let Some(event) = &self.0 {
            // A full counter means that the thread was told already.
            let _ = event.write(1);
        }
    }
}

// Registers and bits of the 16550A that are looked at here.
const INTERRUPT_ENABLE: u8 = 1;
const RECEIVED_DATA: u8 = 1 << 0;
const INTERRUPT_IDENTIFICATION: u8 = 2;
const NO_INTERRUPT: u8 = 1 << 0;
const RECEIVED_DATA_AVAILABLE: u8 = 0b10 << 1;
const LINE_CONTROL: u8 = 3;
const DIVISOR_LATCH: u8 = 1 << 7;
const LINE_STATUS: u8 = 5;
const DATA_READY: u8 = 1 << 0;

type Model = Uart<IrqTrigger, DrainNotice, CharBackend>;

/// A serial port as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

/// A serial port. Its lock is taken by vCPU threads and the input thread; the
/// only lock that is taken while it is held is that of the console's end.
pub struct Serial {
    model: Mutex<Model>,
    // What a model is made with.
    interrupt: Arc<MsiVector>,
    output: CharBackend,
    drained: Option<Arc<EventFd>>,
}

impl Serial {
    /// A port that writes to `output` and signals `drained` whenever the guest
    /// has emptied the receive buffer.
    #[must_use]
    pub fn new(
        interrupt: Arc<MsiVector>,
        output: CharBackend,
        drained: Option<Arc<EventFd>>,
    ) -> Arc<Self> {
        let (trigger, notice) = (
            IrqTrigger(Arc::clone(&interrupt)),
            DrainNotice(drained.clone()),
        );
        let model = Uart::with_events(trigger, notice, output.clone());
        Arc::new(Self {
            model: Mutex::new(model),
            interrupt,
            output,
            drained,
        })
    }

    /// The registers and what the guest has yet to read.
    #[must_use]
    pub fn save(&self) -> SerialState {
        let vm_superio::SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = self.lock().state();
        SerialState {
            baud_divisor: [baud_divisor_low, baud_divisor_high],
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        }
    }

    /// Puts back what [`save`](Self::save) told.
    ///
    /// # Errors
    /// More waits to be read than the port has room for.
    pub fn restore(&self, state: &SerialState) -> Result<(), StateError> {
        let SerialState {
            baud_divisor: [baud_divisor_low, baud_divisor_high],
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            ref in_buffer,
        } = *state;
        let registers = vm_superio::SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: in_buffer.clone(),
        };
        let (trigger, notice) = (
            IrqTrigger(Arc::clone(&self.interrupt)),
            DrainNotice(self.drained.clone()),
        );
        let model = Uart::from_state(&registers, trigger, notice, self.output.clone())
            .map_err(|error| StateError::unfit("the serial port", &format_args!("{error:?}")))?;
        *self.lock() = model;
        Ok(())
    }

    /// Puts bytes into the receive buffer; says how many fitted.
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut model = self.lock();
        let room = model.fifo_capacity().min(bytes.len());
        if room == 0 {
            return 0;
        }
        match model.enqueue_raw_bytes(&bytes[..room]) {
            Ok(taken) => taken,
            Err(error) => {
                log::warn!("serial input lost: {error}");
                room
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a register. A UART reports received data for as long as there is some. The
/// model forgets its report with the first byte that is read: a driver that leaves
/// bytes for the next round of its interrupt handler (Linux, after 256) would be told
/// that there is nothing, and not hear of them again.
fn read_register(model: &mut Model, register: u8) -> u8 {
    let value = model.read(register);
    if register == INTERRUPT_IDENTIFICATION
        && value & NO_INTERRUPT != 0
        && model.read(LINE_STATUS) & DATA_READY != 0
        && model.read(LINE_CONTROL) & DIVISOR_LATCH == 0
        && model.read(INTERRUPT_ENABLE) & RECEIVED_DATA != 0
    {
        return value & !NO_INTERRUPT | RECEIVED_DATA_AVAILABLE;
    }
    value
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The registers are a byte wide; wider reads see the bytes one by one,
        // as on an 8-bit bus.
        let mut model = self.lock();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = read_register(&mut model, offset as u8 + index as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut model = self.lock();
        for (index, &byte) in data.iter().enumerate() {
            if let Err(error) = model.write(offset as u8 + index as u8, byte) {
                // The guest cannot do anything about a full disk or a closed
                // terminal; the byte is lost, as on an unplugged cable.
                log::debug!("serial output lost: {error}");
            }
        }
    }
}
