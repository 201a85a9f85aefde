//! The request to stop as a device's thread sees it in the middle of its work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const END: u8 = 2;

/// Set while the owner of a device waits for its thread to leave guest memory
/// alone. How long a whole request takes is up to the guest, so a service looks
/// at it between bounded pieces of one request.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicU8>);

impl StopFlag {
    /// Whether no further request may begin.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != RUN
    }

    /// Whether the queues are to be let go of: what is left undone is lost with
    /// them. A thread that only pauses finishes a request, or puts it back.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.0.load(Ordering::Relaxed) == END
    }

    /// Asks the thread to pause. It has to be woken as well: it may be waiting.
    pub(super) fn request_pause(&self) {
        self.0.store(PAUSE, Ordering::Relaxed);
    }

    /// Asks the thread to let go of its queues, and to be woken as well.
    pub(super) fn request_end(&self) {
        self.0.store(END, Ordering::Relaxed);
    }

    /// The thread has stopped.
    pub(super) fn clear(&self) {
        self.0.store(RUN, Ordering::Relaxed);
    }
}
