//! The 16550 serial port: the register model is vm-superio's, output goes to the
//! host's end of the console, input comes from there through a thread of its own.

mod input;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::console_end::ConsoleEnd;
use crate::interrupt::MsiVector;

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
struct DrainNotice(Option<EventFd>);

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

type Model = Uart<IrqTrigger, DrainNotice, ConsoleEnd>;

/// A serial port. Its lock is taken by vCPU threads and the input thread; the
/// only lock that is taken while it is held is that of the console's end.
pub struct Serial(Mutex<Model>);

impl Serial {
    /// A port that writes to `output` and signals `drained` whenever the guest
    /// has emptied the receive buffer.
    #[must_use]
    pub fn new(
        interrupt: Arc<MsiVector>,
        output: ConsoleEnd,
        drained: Option<EventFd>,
    ) -> Arc<Self> {
        let model = Uart::with_events(IrqTrigger(interrupt), DrainNotice(drained), output);
        Arc::new(Self(Mutex::new(model)))
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The registers are a byte wide; wider reads see the bytes one by one,
        // as on an 8-bit bus.
        let mut model = self.lock();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = model.read(offset as u8 + index as u8);
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
