//! Which queue pairs are in use. The driver begins with the first; a packet
//! for a pair that it does not serve would be lost, so the interface is kept
//! from using those.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::tap::Tap;

/// One pair's end of the cable.
pub(super) struct TapQueue {
    tap: Tap,
    /// Written when it is attached or detached; the pair's thread waits for it.
    changed: EventFd,
}

impl TapQueue {
    pub(super) fn tap(&self) -> &Tap {
        &self.tap
    }

    pub(super) fn changed(&self) -> &EventFd {
        &self.changed
    }
}

/// The cable. Threads share it: the pairs' own read and write their tap queue, and
/// whoever changes the number of pairs in use holds the lock.
pub(super) struct Steering {
    tap_queues: Vec<TapQueue>,
    /// How many tap queues the interface uses, from the first on.
    attached: Mutex<usize>,
}

impl Steering {
    /// All `taps`, which are attached.
    pub(super) fn new(taps: Vec<Tap>) -> io::Result<Self> {
        let tap_queues: Vec<TapQueue> = taps
            .into_iter()
            .map(|tap| {
                let changed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
                Ok(TapQueue { tap, changed })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            attached: Mutex::new(tap_queues.len()),
            tap_queues,
        })
    }

    pub(super) fn tap_queues(&self) -> &[TapQueue] {
        &self.tap_queues
    }

    fn attached(&self) -> MutexGuard<'_, usize> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many tap queues the interface uses.
    pub(super) fn pairs_in_use(&self) -> usize {
        *self.attached()
    }

    /// Whether the interface uses a tap queue.
    pub(super) fn uses(&self, tap_queue: usize) -> bool {
        tap_queue < *self.attached()
    }

    /// Has the interface use the first `pairs` tap_queues and no others.
    pub(super) fn use_pairs(&self, pairs: usize) -> io::Result<()> {
        let mut attached = self.attached();
        while *attached != pairs {
            let attach = *attached < pairs;
            let index = if attach { *attached } else { *attached - 1 };
            let Some(tap_queue) = self.tap_queues.get(index) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            tap_queue.tap.set_attached(attach)?;
            *attached = if attach { index + 1 } else { index };
            // A full counter wakes as well.
            let _ = tap_queue.changed.write(1);
        }
        Ok(())
    }

    /// Says which unfinished packets the guest takes. It is a property of the
    /// interface, which its first queue, always attached, stands for.
    pub(super) fn set_offload(&self, offload: u32) -> io::Result<()> {
        match self.tap_queues.first() {
            Some(tap_queue) => tap_queue.tap.set_offload(offload),
            None => Ok(()),
        }
    }
}
