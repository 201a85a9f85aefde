//! The device: identity, and the hold of the thread.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::worker::WatchdogService;
use crate::event::EventSink;
use crate::sandbox::ThreadKind;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, GuestFaults, VirtioDevice};

/// The number of this kind of device; the standard reserves it.
const KIND: u32 = 35;
const QUEUE_SIZES: [u16; 1] = [8];
/// How long the guest may be silent.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A watchdog.
pub struct Watchdog {
    faults: Arc<GuestFaults>,
    worker: Worker,
}

impl Watchdog {
    /// A device called `id`. It asks for a reset through `events`.
    pub fn new(id: &str, events: EventSink) -> io::Result<Self> {
        Self::with_timeout(id, events, TIMEOUT)
    }

    pub(super) fn with_timeout(id: &str, events: EventSink, timeout: Duration) -> io::Result<Self> {
        let faults = Arc::new(GuestFaults::new(id));
        let service = WatchdogService::new(Arc::clone(&faults), events.clone(), timeout)?;
        let worker = Worker::spawn(
            id,
            ThreadKind::VirtioWatchdog,
            Arc::clone(&faults),
            events,
            service,
        )?;
        Ok(Self { faults, worker })
    }
}

impl VirtioDevice for Watchdog {
    fn kind(&self) -> u32 {
        KIND
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
