//! A limit on how long the end of a VM takes.
//!
//! Ending a VM waits for vCPU and device threads, and those may wait for the
//! host: a file system that does not answer, a terminal that nobody reads. So a
//! thread that waits for nothing of a VM looks at the clock, and ends the
//! process if the control thread does not come through.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::event::EventSink;
use crate::sandbox::{ThreadKind, spawn};

/// Time that the threads of a VM have to end. Well above what storage takes to
/// finish its requests. Giving guest memory back is not part of it.
pub(super) const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

struct Shared {
    /// Tells the thread that something below has changed.
    wake: OwnedFd,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// When the process is ended.
    deadline: Option<Instant>,
    closing: bool,
}

/// The control thread's handle of the thread. Dropping it ends the thread.
pub(super) struct ShutdownWatch {
    shared: Arc<Shared>,
    grace: Duration,
    thread: Option<JoinHandle<()>>,
}

impl ShutdownWatch {
    /// Starts the thread. A byte in `signal` starts the clock, as
    /// [`arm`](Self::arm) does; `expired` is called once, when time is over.
    pub(super) fn start(
        signal: UnixStream,
        grace: Duration,
        events: EventSink,
        expired: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            state: Mutex::default(),
        });
        signal.set_nonblocking(true)?;
        let watched = Arc::clone(&shared);
        let thread = spawn(
            "shutdown-watch",
            ThreadKind::ShutdownWatch,
            events,
            move || {
                if watch(&watched, &signal, grace) {
                    expired();
                }
            },
        )?;
        Ok(Self {
            shared,
            grace,
            thread: Some(thread),
        })
    }

    /// The threads of a VM are about to be ended.
    pub(super) fn arm(&self) {
        self.shared
            .change(|state| state.deadline = Some(Instant::now() + self.grace));
    }

    /// They have ended.
    pub(super) fn disarm(&self) {
        self.shared.change(|state| state.deadline = None);
    }
}

impl Drop for ShutdownWatch {
    fn drop(&mut self) {
        self.shared.change(|state| state.closing = true);
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until time is over (true) or there is nothing to watch any more.
fn watch(shared: &Shared, signal: &UnixStream, grace: Duration) -> bool {
    let mut signal_open = true;
    loop {
        let state = shared.state();
        if state.closing {
            return false;
        }
        let left = state
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return true;
        }
        // A time that the type cannot hold is as good as none.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut sources = [
            PollFd::new(&shared.wake, PollFlags::IN),
            PollFd::new(signal, PollFlags::IN),
        ];
        let count = if signal_open { 2 } else { 1 };
        if let Err(error) = poll(&mut sources[..count], timeout.as_ref())
            && error != rustix::io::Errno::INTR
        {
            log::error!("the limit of a shutdown is not watched any more: {error}");
            return false;
        }
        let signalled = count == 2 && !sources[1].revents().is_empty();
        let _ = rustix::io::read(&shared.wake, &mut [0; 8]);
        if signalled {
            match rustix::io::read(signal, &mut [0; 64]) {
                Ok(0) => signal_open = false,
                Ok(_) => {
                    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
                    // Signals that follow do not give it more time.
                    state.deadline.get_or_insert(Instant::now() + grace);
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

    use super::*;

    const GRACE: Duration = Duration::from_millis(200);

    fn watched() -> (ShutdownWatch, UnixStream, Receiver<Instant>) {
        let (signal, sender) = UnixStream::pair().unwrap();
        let (expired, when) = channel();
        let watch = ShutdownWatch::start(signal, GRACE, EventSink::new(|_| {}), move || {
            expired.send(Instant::now()).unwrap();
        });
        (watch.unwrap(), sender, when)
    }

    #[test]
    fn a_shutdown_that_does_not_end_ends_the_process() {
        let (watch, _signal, when) = watched();
        let start = Instant::now();
        watch.arm();
        let expired = when.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(expired - start >= GRACE);
    }

    #[test]
    fn a_signal_ends_the_process_even_if_nobody_serves_it() {
        let (_watch, mut signal, when) = watched();
        let start = Instant::now();
        signal.write_all(b"x").unwrap();
        // One that keeps coming is served all the same.
        for _ in 0..20 {
            std::thread::sleep(GRACE / 10);
            let _ = signal.write_all(b"x");
        }
        let expired = when.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(expired - start >= GRACE);
    }

    #[test]
    fn a_shutdown_in_time_ends_nothing() {
        let (watch, signal, when) = watched();
        for _ in 0..3 {
            watch.arm();
            watch.disarm();
        }
        drop(signal);
        assert_eq!(when.recv_timeout(2 * GRACE), Err(RecvTimeoutError::Timeout));
        watch.arm();
        drop(watch);
        assert_eq!(when.recv(), Err(std::sync::mpsc::RecvError));
    }
}
