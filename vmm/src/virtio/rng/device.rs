//! The device: identity, and the hold of the thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::worker::RngService;
use crate::event::EventSink;
use crate::sandbox::ThreadKind;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, GuestFaults, VirtioDevice};

const QUEUE_SIZES: [u16; 1] = [256];

/// Opens where random bytes come from. Never waits, neither here nor when it
/// is read: a named pipe or a terminal is not a source.
fn open_source(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_char_device() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a character device or a regular file",
        ))
    }
}

/// An entropy device.
pub struct Rng {
    faults: Arc<GuestFaults>,
    worker: Worker,
}

impl Rng {
    /// A device called `id` whose bytes come from the file `source`.
    pub fn new(id: &str, source: &Path, events: EventSink) -> io::Result<Self> {
        let faults = Arc::new(GuestFaults::new(id));
        let service = RngService::new(open_source(source)?, Arc::clone(&faults));
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

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.start(activation)
    }

    fn reset(&mut self) {
        self.worker.stop();
    }
}
