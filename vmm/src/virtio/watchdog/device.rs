//! The device: identity, and the hold of the thread.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::worker::{WatchdogHold, WatchdogService};
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
    hold: Arc<WatchdogHold>,
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
        let hold = Arc::new(WatchdogHold::default());
        let service = WatchdogService::new(
            Arc::clone(&faults),
            events.clone(),
            timeout,
            Arc::clone(&hold),
        )?;
        let worker = Worker::spawn(
            id,
            ThreadKind::VirtioWatchdog,
            Arc::clone(&faults),
            events,
            service,
        )?;
        Ok(Self {
            hold,
            faults,
            worker,
        })
    }

    /// The control thread's hold of the watchdog.
    #[must_use]
    pub fn hold(&self) -> Arc<WatchdogHold> {
        Arc::clone(&self.hold)
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

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.start(activation)
    }

    fn reset(&mut self) {
        self.worker.stop();
    }
}
