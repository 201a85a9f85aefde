//! The device: identity, and the handle of the thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::worker::WatchdogService;
use crate::event::EventSink;
use crate::sandbox::ThreadKind;
use crate::state::{StateError, device_state, from_device_state};
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, GuestFaults, VirtioDevice};

/// The number of this kind of device; the standard reserves it.
const KIND: u32 = 35;
const QUEUE_SIZES: [u16; 1] = [8];
/// How long the guest may be silent.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A watchdog as it is saved. The time of a guest that pinged begins anew.
#[derive(Serialize, Deserialize)]
struct WatchdogState {
    armed: bool,
}

/// A watchdog.
pub struct Watchdog {
    armed: Arc<AtomicBool>,
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
        let armed = Arc::new(AtomicBool::new(false));
        let service = WatchdogService::new(
            Arc::clone(&faults),
            events.clone(),
            timeout,
            Arc::clone(&armed),
        )?;
        let worker = Worker::spawn(
            id,
            ThreadKind::VirtioWatchdog,
            Arc::clone(&faults),
            events,
            service,
        )?;
        Ok(Self {
            armed,
            faults,
            worker,
        })
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

    fn save(&self) -> Value {
        device_state(&WatchdogState {
            armed: self.armed.load(Ordering::Relaxed),
        })
    }

    fn restore(&mut self, state: &Value) -> Result<(), StateError> {
        let WatchdogState { armed } = from_device_state("the watchdog", state)?;
        self.armed.store(armed, Ordering::Relaxed);
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.start(activation)
    }

    fn reset(&mut self) {
        self.worker.stop();
    }
}
