//! What a device's thread tells the driver, and what the driver reads without
//! an exit. Shared by that thread and the vCPU threads.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::common::{LENGTH, STATUS};
use super::{COMMON, DEVICE, TABLE};
use crate::memory::ReadOnlyWindow;
use crate::pci::{MsixVectors, NO_VECTOR};
use crate::virtio::VirtioInterrupt;
use crate::virtio::status::NEEDS_RESET;

const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// What the guest sees in the window.
struct RegisterMirror {
    common: [u8; LENGTH],
    window: Option<ReadOnlyWindow>,
}

/// Vectors, interrupt status, the request for a reset.
pub(super) struct PciInterrupt {
    vectors: Arc<MsixVectors>,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    isr: AtomicU8,
    failed: AtomicBool,
    /// The last lock that anybody takes.
    mirror: Mutex<RegisterMirror>,
}

impl PciInterrupt {
    pub(super) fn new(vectors: Arc<MsixVectors>, queues: usize) -> Self {
        Self {
            vectors,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            failed: AtomicBool::new(false),
            mirror: Mutex::new(RegisterMirror {
                common: [0; LENGTH],
                window: None,
            }),
        }
    }

    fn mirror(&self) -> MutexGuard<'_, RegisterMirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the driver's choice of vectors.
    pub(super) fn set_vectors(&self, config: u16, queues: impl Iterator<Item = u16>) {
        self.config_vector.store(config, Ordering::Release);
        for (cell, vector) in self.queue_vectors.iter().zip(queues) {
            cell.store(vector, Ordering::Release);
        }
    }

    /// Nothing is pending and nothing is wrong.
    pub(super) fn reset(&self) {
        self.failed.store(false, Ordering::Release);
        self.isr.store(0, Ordering::Release);
    }

    /// What is pending beside the vectors, and whether the driver is asked for a
    /// reset.
    pub(super) fn pending(&self) -> (u8, bool) {
        (
            self.isr.load(Ordering::Acquire),
            self.failed.load(Ordering::Acquire),
        )
    }

    /// Sets what [`pending`](Self::pending) told.
    pub(super) fn set_pending(&self, isr: u8, failed: bool) {
        self.isr.store(isr, Ordering::Release);
        self.failed.store(failed, Ordering::Release);
    }

    /// Reads the interrupt status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    fn raise(&self, vector: u16, isr: u8) {
        if !self.vectors.raise(vector) {
            // For drivers that look instead of being told.
            self.isr.fetch_or(isr, Ordering::AcqRel);
        }
    }

    /// Has the guest read `common` and `device` from now on.
    pub(super) fn publish(&self, mut common: [u8; LENGTH], device: &[u8]) {
        let mut mirror = self.mirror();
        if self.failed.load(Ordering::Acquire) {
            common[STATUS] |= NEEDS_RESET;
        }
        mirror.common = common;
        if let Some(window) = &mirror.window {
            window.store(COMMON, &common);
            window.store(DEVICE, device);
        }
    }

    /// Has the guest read `table` from now on.
    pub(super) fn publish_table(&self, table: &[u8]) {
        if let Some(window) = &self.mirror().window {
            window.store(TABLE, table);
        }
    }

    /// Takes the window away; in its place comes another, or none.
    pub(super) fn set_window(&self, window: Option<ReadOnlyWindow>) {
        // Not under the lock: it takes the hypervisor a while.
        let old = std::mem::replace(&mut self.mirror().window, window);
        drop(old);
    }

    /// The common configuration with what the device's thread changed.
    pub(super) fn common(&self) -> [u8; LENGTH] {
        self.mirror().common
    }
}

impl VirtioInterrupt for PciInterrupt {
    fn queue_used(&self, queue: u16) {
        if let Some(vector) = self.queue_vectors.get(usize::from(queue)) {
            self.raise(vector.load(Ordering::Acquire), ISR_QUEUE);
        }
    }

    fn config_changed(&self) {
        self.raise(self.config_vector.load(Ordering::Acquire), ISR_CONFIG);
    }

    fn needs_reset(&self) {
        let mut mirror = self.mirror();
        self.failed.store(true, Ordering::Release);
        mirror.common[STATUS] |= NEEDS_RESET;
        let word = mirror.common;
        if let Some(window) = &mirror.window {
            window.store(COMMON, &word);
        }
        drop(mirror);
        self.config_changed();
    }
}
