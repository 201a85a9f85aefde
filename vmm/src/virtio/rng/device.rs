//! The device: identity, and the handle of the thread.

use std::io;
use std::path::Path;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::worker::RngService;
use crate::event::EventSink;
use crate::host_file::{self, Purpose};
use crate::sandbox::ThreadKind;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, GuestFaults, VirtioDevice};

const QUEUE_SIZES: [u16; 1] = [256];

/// An entropy device.
pub struct Rng {
    faults: Arc<GuestFaults>,
    worker: Worker,
}

impl Rng {
    /// A device called `id` whose bytes come from the file `source`.
    pub fn new(id: &str, source: &Path, events: EventSink) -> io::Result<Self> {
        let faults = Arc::new(GuestFaults::new(id));
        let service = RngService::new(
            host_file::open(source, Purpose::Entropy)?,
            Arc::clone(&faults),
        );
        let worker = Worker::spawn(
            id,
            ThreadKind::VirtioRng,
            Arc::clone(&faults),
            events,
            service,
        )?;
        Ok(Self { faults, worker })
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn faults(&self) -> &Arc<GuestFaults> {
        &self.faults
    }

    fn workers(&self) -> &[Worker] {
        std::slice::from_ref(&self.worker)
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.start(activation)
    }

    fn reset(&mut self) {
        self.worker.stop();
    }
}
