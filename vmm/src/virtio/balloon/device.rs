//! The device: identity, configuration, and the handle of the thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::request::PAGE;
use super::worker::BalloonService;
use crate::event::EventSink;
use crate::sandbox::ThreadKind;
use crate::state::{StateError, device_state, from_device_state};
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, GuestFaults, VirtioDevice, copy_config};

/// Features, by bit (5.5.3).
const DEFLATE_ON_OOM: u64 = 1 << 2;
const REPORTING: u64 = 1 << 5;

const QUEUE_SIZES: [u16; 3] = [128, 128, 32];

/// Offset and length of the driver's part of the configuration.
const ACTUAL: usize = 4;
const CONFIG_LENGTH: usize = 8;

/// How large the balloon is and is to be. Shared by the device and the control
/// thread, which tells the driver of changes through the transport.
#[derive(Debug, Default)]
pub struct BalloonSize {
    wanted: AtomicU32,
    actual: AtomicU32,
}

impl BalloonSize {
    /// Bytes that the guest is to give up, in whole pages.
    pub fn set_wanted(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.wanted.store(pages, Ordering::Relaxed);
    }

    /// Bytes that the guest has given up, as it says.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.actual.load(Ordering::Relaxed)) * PAGE
    }
}

/// What a device is made from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BalloonParams {
    /// Bytes that the guest is to give up at first.
    pub size: u64,
    /// The guest may take memory back rather than run out of it.
    pub deflate_on_oom: bool,
    /// The guest reports memory that it does not use.
    pub free_page_reporting: bool,
}

/// A balloon as it is saved, in pages.
#[derive(Serialize, Deserialize)]
struct BalloonState {
    wanted: u32,
    actual: u32,
}

/// A balloon device.
pub struct Balloon {
    features: u64,
    size: Arc<BalloonSize>,
    faults: Arc<GuestFaults>,
    worker: Worker,
}

impl Balloon {
    /// A device called `id`.
    pub fn new(id: &str, params: &BalloonParams, events: EventSink) -> io::Result<Self> {
        let mut features = 0;
        if params.deflate_on_oom {
            features |= DEFLATE_ON_OOM;
        }
        if params.free_page_reporting {
            features |= REPORTING;
        }
        let size = Arc::new(BalloonSize::default());
        size.set_wanted(params.size);
        let faults = Arc::new(GuestFaults::new(id));
        let service = BalloonService::new(Arc::clone(&faults));
        let worker = Worker::spawn(
            id,
            ThreadKind::VirtioBalloon,
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

    /// The control thread's handle of the balloon's size.
    #[must_use]
    pub fn size(&self) -> Arc<BalloonSize> {
        Arc::clone(&self.size)
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> &[u16] {
        // Without the queues of features that are not offered, the one for
        // reports is the third.
        if self.features & REPORTING != 0 {
            &QUEUE_SIZES
        } else {
            &QUEUE_SIZES[..2]
        }
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config_length(&self) -> usize {
        CONFIG_LENGTH
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = [0; CONFIG_LENGTH];
        let (wanted, actual) = config.split_at_mut(ACTUAL);
        wanted.copy_from_slice(&self.size.wanted.load(Ordering::Relaxed).to_le_bytes());
        actual.copy_from_slice(&self.size.actual.load(Ordering::Relaxed).to_le_bytes());
        copy_config(&config, offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (ACTUAL, Ok(data)) = (offset, data.try_into()) {
            self.size
                .actual
                .store(u32::from_le_bytes(data), Ordering::Relaxed);
        }
    }

    fn faults(&self) -> &Arc<GuestFaults> {
        &self.faults
    }

    fn workers(&self) -> &[Worker] {
        std::slice::from_ref(&self.worker)
    }

    fn save(&self) -> Value {
        let BalloonSize { wanted, actual } = &*self.size;
        device_state(&BalloonState {
            wanted: wanted.load(Ordering::Relaxed),
            actual: actual.load(Ordering::Relaxed),
        })
    }

    fn restore(&mut self, state: &Value) -> Result<(), StateError> {
        let BalloonState { wanted, actual } = from_device_state("the memory balloon", state)?;
        self.size.wanted.store(wanted, Ordering::Relaxed);
        self.size.actual.store(actual, Ordering::Relaxed);
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.start(activation)
    }

    fn reset(&mut self) {
        self.worker.stop();
        self.size.actual.store(0, Ordering::Relaxed);
    }
}
