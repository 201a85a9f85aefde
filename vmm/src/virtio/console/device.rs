//! The device: identity, configuration, and the handle of the thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::worker::ConsoleService;
use crate::chardev::CharBackend;
use crate::event::EventSink;
use crate::sandbox::ThreadKind;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, GuestFaults, VirtioDevice, copy_config};

/// The configuration has columns and rows (5.3.3).
const SIZE: u64 = 1 << 0;
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Columns and rows, shared by the device and the control thread, which tells
/// the driver of changes through the transport.
#[derive(Debug, Default)]
pub struct ConsoleSize(AtomicU32);

impl ConsoleSize {
    /// The terminal has a new size.
    pub fn set(&self, columns: u16, rows: u16) {
        let both = u32::from(columns) | u32::from(rows) << 16;
        self.0.store(both, Ordering::Relaxed);
    }
}

/// A console with one port.
pub struct Console {
    features: u64,
    size: Arc<ConsoleSize>,
    faults: Arc<GuestFaults>,
    worker: Worker,
}

impl Console {
    /// A device called `id`, connected to `end`.
    pub fn new(id: &str, end: CharBackend, events: EventSink) -> io::Result<Self> {
        let size = Arc::new(ConsoleSize::default());
        let mut features = 0;
        if let Some((columns, rows)) = end.size() {
            size.set(columns, rows);
            features |= SIZE;
        }
        let faults = Arc::new(GuestFaults::new(id));
        let service = ConsoleService::new(end, Arc::clone(&faults));
        let worker = Worker::spawn(
            id,
            ThreadKind::VirtioConsole,
            Arc::clone(&faults),
            events,
            service,
        )?;
        Ok(Self {
            features,
            size,
            faults,
            worker,
        })
    }

    /// The control thread's handle of the console's size.
    #[must_use]
    pub fn size(&self) -> Arc<ConsoleSize> {
        Arc::clone(&self.size)
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config_length(&self) -> usize {
        size_of::<u32>()
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let size = self.size.0.load(Ordering::Relaxed);
        copy_config(&size.to_le_bytes(), offset, data);
    }

    fn faults(&self) -> &Arc<GuestFaults> {
        &self.faults
    }

    fn workers(&self) -> &[Worker] {
        std::slice::from_ref(&self.worker)
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let sized = activation.features & SIZE != 0;
        let interrupt = Arc::clone(&activation.interrupt);
        self.worker.start(activation)?;
        // Linux reads the size when it is told of a change, and only then.
        if sized {
            interrupt.config_changed();
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.worker.stop();
    }
}
