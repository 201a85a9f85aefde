//! The device: identity, configuration, and the handle of the thread.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::timerfd::TimerFd;

use super::host::Listener;
use super::muxer::VsockMuxer;
use super::worker::{FIRST_STREAM, VsockService};
use crate::event::EventSink;
use crate::sandbox::ThreadKind;
use crate::state::StateError;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, GuestFaults, VirtioDevice, copy_config};

const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

/// What a device is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockParams {
    /// The guest's context identifier.
    pub cid: u32,
    /// Where the host's programs connect to.
    pub socket: PathBuf,
}

/// A socket device.
pub struct Vsock {
    cid: u64,
    restored: Arc<AtomicBool>,
    faults: Arc<GuestFaults>,
    worker: Worker,
}

impl Vsock {
    /// A device called `id`.
    pub fn new(id: &str, params: &VsockParams, events: EventSink) -> io::Result<Self> {
        let cid = u64::from(params.cid);
        let faults = Arc::new(GuestFaults::new(id));
        let restored = Arc::new(AtomicBool::new(false));
        let listener = Listener::bind(&params.socket)?;
        let service = VsockService {
            muxer: VsockMuxer::new(cid, listener, Arc::clone(&faults), FIRST_STREAM),
            faults: Arc::clone(&faults),
            timer: TimerFd::new()?,
            ticking: false,
            restored: Arc::clone(&restored),
            active: None,
        };
        let worker = Worker::spawn(
            id,
            ThreadKind::VirtioVsock,
            Arc::clone(&faults),
            events,
            service,
        )?;
        Ok(Self {
            cid,
            restored,
            faults,
            worker,
        })
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn config_length(&self) -> usize {
        size_of::<u64>()
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.cid.to_le_bytes(), offset, data);
    }

    fn faults(&self) -> &Arc<GuestFaults> {
        &self.faults
    }

    fn workers(&self) -> &[Worker] {
        std::slice::from_ref(&self.worker)
    }

    /// Connections end with the sockets of the host: the driver hears of it when
    /// the device goes on.
    fn restore(&mut self, _state: &Value) -> Result<(), StateError> {
        self.restored.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        for index in 0..2 {
            if !activation.queues.iter().any(|queue| queue.index() == index) {
                return Err(ActivateError::MissingQueue(index));
            }
        }
        self.worker.start(activation)
    }

    fn reset(&mut self) {
        self.worker.stop();
    }
}
