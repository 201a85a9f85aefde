//! The request to stop as a device's thread sees it in the middle of its work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set while the owner of a device waits for its thread to let go of the
/// queues. A service looks at it between bounded pieces of one request: how
/// long a whole request takes is up to the guest. What is left undone then is
/// lost with the queues.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Whether the thread is to stop.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks the thread to stop. It has to be woken as well: it may be waiting.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The thread has stopped.
    pub(super) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
