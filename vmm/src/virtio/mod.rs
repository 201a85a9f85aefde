//! Virtio 1.3 devices, independent of how the guest reaches them.
//!
//! A device is a folder of its own that implements [`VirtioDevice`] and serves
//! its queues on a thread of its own ([`worker`]); the transport (`transport`)
//! carries registers, kicks and interrupts. To add one, copy the folder `rng`.
//!
//! Threads: the control thread creates devices, and with them their threads,
//! so that a guest never makes the VMM start one. vCPU threads write registers
//! and so activate and reset devices, one call at a time. Kicks go from the
//! kernel straight to the device's thread, interrupts straight back.
//!
//! The guest is not trusted. What it does wrong is answered in the used ring
//! or by asking for a reset, counted, and logged at a limited rate
//! ([`GuestFaults`]).

pub mod balloon;
pub mod block;
pub mod console;
mod faults;
mod features;
pub mod net;
mod queue;
pub mod rate_limit;
pub mod rng;
mod status;
mod stop;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;
pub mod vsock;
pub mod watchdog;
pub mod worker;

use std::io;
use std::sync::Arc;

use serde_json::Value;
use virtio_bindings::{virtio_config, virtio_ring};

pub use faults::GuestFaults;
pub use queue::{Chain, QueueError, QueuePosition, VirtQueue};
pub use status::{DeviceStatus, Transition};
pub use stop::StopFlag;

use crate::memory::GuestRam;
pub use crate::pci::DeviceCounters;
use crate::state::StateError;
use worker::Worker;

/// Features that the transport and the queues bring, for every device.
pub const COMMON_FEATURES: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1
    | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX
    | 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// One device. The transport owns it and calls it from one thread at a time.
///
/// ```text
///            activate                  queues served on the device's threads
///  created ───────────► active ──────► until reset
///     ▲                    │
///     └──────── reset ─────┘           also the driver's way out of a failure
/// ```
pub trait VirtioDevice: Send {
    /// The number that the standard gives to this kind of device.
    fn kind(&self) -> u32;

    /// The most entries that each queue can have; as many queues as numbers.
    fn queue_sizes(&self) -> &[u16];

    /// Features of this device, beside [`COMMON_FEATURES`].
    fn features(&self) -> u64;

    /// Length of the device's configuration structure.
    fn config_length(&self) -> usize {
        0
    }

    /// Fills `data` from `offset` of the configuration structure, within its
    /// length. Must have no side effect: the guest may read it at any time
    /// without anybody noticing.
    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    /// The guest writes to the configuration structure, within its length.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// The driver is ready: serve the queues from now on. Runs on a vCPU
    /// thread, so it hands them to a thread that exists already.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Let go of the queues and forget what the driver set. When it returns,
    /// nothing of the device touches guest memory any more. Also called when
    /// the device is not active.
    fn reset(&mut self);

    /// The threads that serve its queues.
    fn workers(&self) -> &[Worker];

    /// What the driver has set beside transport and queues, while the threads are
    /// paused; nothing if there is nothing.
    fn save(&self) -> Value {
        Value::Null
    }

    /// Puts it back. Called after [`activate`](Self::activate), if the device was
    /// active, with the threads paused.
    ///
    /// # Errors
    /// It is the state of another device, or the host does not do what it takes.
    fn restore(&mut self, _state: &Value) -> Result<(), StateError> {
        Ok(())
    }

    /// Counts and logs what goes wrong with the device, for its whole life: a
    /// driver that starts it again and again gets no more lines for that.
    fn faults(&self) -> &Arc<GuestFaults>;

    /// Counters for `vm.counters`, if the device has any.
    fn counters(&self) -> Option<Arc<dyn DeviceCounters>> {
        None
    }
}

/// What a device gets when the driver is ready.
pub struct Activation {
    /// Guest memory.
    pub memory: Arc<GuestRam>,
    /// What both sides agreed on.
    pub features: u64,
    /// The queues that the driver set up, in the order of their numbers.
    pub queues: Vec<VirtQueue>,
    /// The way to the driver.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}

impl Activation {
    /// The queue with the number `index`, if the driver set it up.
    pub fn take_queue(&mut self, index: u16) -> Option<VirtQueue> {
        let place = self
            .queues
            .iter()
            .position(|queue| queue.index() == index)?;
        Some(self.queues.remove(place))
    }
}

/// What a device tells the driver. Callable from any thread; never blocks on
/// the guest or on the device.
pub trait VirtioInterrupt: Send + Sync {
    /// There are used buffers in a queue.
    fn queue_used(&self, queue: u16);
    /// The driver is to look at the device's configuration.
    fn config_changed(&self);
    /// The device cannot go on until the driver resets it.
    fn needs_reset(&self);
}

/// Why a device does not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device cannot do without.
    #[error("Queue {0} is missing")]
    MissingQueue(u16),
    /// The device's thread has ended.
    #[error("The device's thread has ended")]
    ThreadEnded,
    /// The host did not give what the device needs.
    #[error("The host lacks something that the device needs")]
    Host(#[from] io::Error),
}

/// Copies from `structure` what a read of `data.len()` bytes at `offset` sees.
pub fn copy_config(structure: &[u8], offset: usize, data: &mut [u8]) {
    let source = structure.get(offset..).unwrap_or_default();
    for (byte, value) in data.iter_mut().zip(source) {
        *byte = *value;
    }
}
