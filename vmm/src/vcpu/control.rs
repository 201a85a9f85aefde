//! The state that the control thread requests of a vCPU thread, and the state
//! that the thread is in.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A state of a vCPU thread, requested or reached. The thread takes on the
/// requested one at the next point where it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum VcpuRunState {
    /// In the guest, or handling an exit.
    Running = 0,
    /// Stopped between two instructions; no I/O is half done.
    Parked = 1,
    /// The thread has ended.
    Stopped = 2,
}

impl VcpuRunState {
    fn from_byte(byte: u8) -> Self {
        match byte {
            0 => VcpuRunState::Running,
            1 => VcpuRunState::Parked,
            _ => VcpuRunState::Stopped,
        }
    }
}

/// Shared by the control thread and one vCPU thread. `requested` is atomic
/// because the vCPU thread reads it before every entry; it changes only under
/// the lock of `state`, so that no waiter misses a change.
pub(super) struct Control {
    requested: AtomicU8,
    state: Mutex<VcpuRunState>,
    changed: Condvar,
}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            requested: AtomicU8::new(VcpuRunState::Parked as u8),
            state: Mutex::new(VcpuRunState::Running),
            changed: Condvar::new(),
        }
    }

    /// Requests a state. Nothing comes after [`VcpuRunState::Stopped`].
    pub(super) fn request(&self, state: VcpuRunState) {
        let _guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.requested() != VcpuRunState::Stopped {
            self.requested.store(state as u8, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }

    pub(super) fn requested(&self) -> VcpuRunState {
        VcpuRunState::from_byte(self.requested.load(Ordering::SeqCst))
    }

    /// The state that the thread is in.
    pub(super) fn state(&self) -> VcpuRunState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks the vCPU thread while it is to be parked; returns the state that
    /// is requested next.
    pub(super) fn park(&self) -> VcpuRunState {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = VcpuRunState::Parked;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |_| self.requested() == VcpuRunState::Parked)
            .unwrap_or_else(PoisonError::into_inner);
        *state = VcpuRunState::Running;
        self.requested()
    }

    /// Blocks the control thread until the vCPU is parked or its thread has ended.
    pub(super) fn wait_paused(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.changed
                .wait_while(state, |state| *state == VcpuRunState::Running)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn mark_stopped(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = VcpuRunState::Stopped;
        self.changed.notify_all();
    }
}

/// Marks the thread as stopped when it ends, in whatever way.
pub(super) struct ExitGuard(Arc<Control>);

impl ExitGuard {
    pub(super) fn new(control: Arc<Control>) -> Self {
        Self(control)
    }
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.0.mark_stopped();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_starts_parked_and_goes_on_when_asked() {
        let control = Arc::new(Control::new());
        let other = Arc::clone(&control);
        let thread = thread::spawn(move || {
            let _guard = ExitGuard::new(Arc::clone(&other));
            let first = other.park();
            (first, other.park())
        });
        control.wait_paused();
        assert_eq!(*control.state.lock().unwrap(), VcpuRunState::Parked);
        control.request(VcpuRunState::Stopped);
        assert_eq!(
            thread.join().unwrap(),
            (VcpuRunState::Stopped, VcpuRunState::Stopped)
        );
        assert_eq!(*control.state.lock().unwrap(), VcpuRunState::Stopped);
    }

    #[test]
    fn nothing_revives_a_stopped_vcpu() {
        let control = Control::new();
        control.request(VcpuRunState::Stopped);
        control.request(VcpuRunState::Running);
        assert_eq!(control.requested(), VcpuRunState::Stopped);
    }

    #[test]
    fn waiting_for_a_thread_that_died_ends() {
        let control = Arc::new(Control::new());
        drop(ExitGuard::new(Arc::clone(&control)));
        control.wait_paused();
    }
}
