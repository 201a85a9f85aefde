//! Which queue pairs are in use. The driver begins with the first; a packet
//! for a pair that it does not serve would be lost, so the interface is kept
//! from using those.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::tap::Tap;

/// One pair's end of the cable.
pub(super) struct Lane {
    tap: Tap,
    /// Written when it is attached or detached; the pair's thread waits for it.
    changed: EventFd,
}

impl Lane {
    pub(super) fn tap(&self) -> &Tap {
        &self.tap
    }

    pub(super) fn changed(&self) -> &EventFd {
        &self.changed
    }
}

/// The cable. Threads share it: the pairs' own read and write their lane, and
/// whoever changes the number of pairs in use holds the lock.
pub(super) struct Steering {
    lanes: Vec<Lane>,
    /// How many lanes the interface uses, from the first on.
    attached: Mutex<usize>,
}

impl Steering {
    /// All `taps`, which are attached.
    pub(super) fn new(taps: Vec<Tap>) -> io::Result<Self> {
        let lanes: Vec<Lane> = taps
            .into_iter()
            .map(|tap| {
                let changed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
                Ok(Lane { tap, changed })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            attached: Mutex::new(lanes.len()),
            lanes,
        })
    }

    pub(super) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    fn attached(&self) -> MutexGuard<'_, usize> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many lanes the interface uses.
    pub(super) fn pairs_in_use(&self) -> usize {
        *self.attached()
    }

    /// Whether the interface uses a lane.
    pub(super) fn uses(&self, lane: usize) -> bool {
        lane < *self.attached()
    }

    /// Has the interface use the first `pairs` lanes and no others.
    pub(super) fn use_pairs(&self, pairs: usize) -> io::Result<()> {
        let mut attached = self.attached();
        while *attached != pairs {
            let attach = *attached < pairs;
            let index = if attach { *attached } else { *attached - 1 };
            let Some(lane) = self.lanes.get(index) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            lane.tap.set_attached(attach)?;
            *attached = if attach { index + 1 } else { index };
            // A full counter wakes as well.
            let _ = lane.changed.write(1);
        }
        Ok(())
    }

    /// Says which unfinished packets the guest takes. It is a property of the
    /// interface, which its first queue, always attached, stands for.
    pub(super) fn set_offload(&self, offload: u32) -> io::Result<()> {
        match self.lanes.first() {
            Some(lane) => lane.tap.set_offload(offload),
            None => Ok(()),
        }
    }
}
