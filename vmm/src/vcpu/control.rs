//! What the control thread wants of a vCPU thread, and what that one does.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Both the wish and the state: a vCPU thread follows the wish at the next
/// point where it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum VcpuRunState {
    /// In the guest, or handling an exit.
    Running = 0,
    /// Standing still; no I/O instruction is half done.
    Parked = 1,
    /// Over.
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

/// Shared by the control thread and one vCPU thread. `wish` is atomic because
/// the vCPU thread reads it before every entry; it changes only under the lock
/// of `state`, so that nobody sleeps through a change.
pub(super) struct Control {
    wish: AtomicU8,
    state: Mutex<VcpuRunState>,
    changed: Condvar,
}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            wish: AtomicU8::new(VcpuRunState::Parked as u8),
            state: Mutex::new(VcpuRunState::Running),
            changed: Condvar::new(),
        }
    }

    /// Sets the wish. Nothing comes after [`VcpuRunState::Stopped`].
    pub(super) fn request(&self, wish: VcpuRunState) {
        let _state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.wish() != VcpuRunState::Stopped {
            self.wish.store(wish as u8, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }

    pub(super) fn wish(&self) -> VcpuRunState {
        VcpuRunState::from_byte(self.wish.load(Ordering::SeqCst))
    }

    /// Blocks the vCPU thread while it is to stand still; says what is wanted
    /// next.
    pub(super) fn park(&self) -> VcpuRunState {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = VcpuRunState::Parked;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |_| self.wish() == VcpuRunState::Parked)
            .unwrap_or_else(PoisonError::into_inner);
        *state = VcpuRunState::Running;
        self.wish()
    }

    /// Blocks the control thread until the vCPU stands still or is over.
    pub(super) fn wait_still(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.changed
                .wait_while(state, |state| *state == VcpuRunState::Running)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn over(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = VcpuRunState::Stopped;
        self.changed.notify_all();
    }
}

/// Marks the thread as over when it ends, in whatever way.
pub(super) struct ExitGuard(Arc<Control>);

impl ExitGuard {
    pub(super) fn new(control: Arc<Control>) -> Self {
        Self(control)
    }
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.0.over();
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
        control.wait_still();
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
        assert_eq!(control.wish(), VcpuRunState::Stopped);
    }

    #[test]
    fn waiting_for_a_thread_that_died_ends() {
        let control = Arc::new(Control::new());
        drop(ExitGuard::new(Arc::clone(&control)));
        control.wait_still();
    }
}
