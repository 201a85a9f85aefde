//! The thread that carries what is typed on the terminal to the serial port.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Serial;
use super::terminal::RawTerminal;
use crate::event::EventSink;
use crate::sandbox::{ThreadKind, spawn};

/// Why the input thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// No event or epoll descriptor.
    #[error("Cannot prepare the terminal's input")]
    Prepare(#[source] io::Error),
    /// No thread.
    #[error("Cannot start the terminal's input thread")]
    Spawn(#[source] io::Error),
}

const STDIN: u64 = 0;
const DRAINED: u64 = 1;
const STOP: u64 = 2;

/// The terminal in the guest's hands. Dropping it ends the thread and puts the
/// terminal back.
pub struct SerialInput {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
    _terminal: Option<RawTerminal>,
}

impl SerialInput {
    /// Starts the thread. `drained` is the event that `serial` signals.
    pub fn start(
        serial: Arc<Serial>,
        drained: EventFd,
        events: EventSink,
    ) -> Result<Self, InputError> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(InputError::Prepare)?;
        let stop_reader = stop.try_clone().map_err(InputError::Prepare)?;
        let stdin = io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(InputError::Prepare)?;
        let worker = Worker {
            epoll: Epoll::new().map_err(InputError::Prepare)?,
            stdin: stdin.into(),
            drained,
            stop: stop_reader,
            serial,
            pending: Vec::new(),
        };
        worker.watch_fixed().map_err(InputError::Prepare)?;
        let terminal = RawTerminal::enter().map_err(InputError::Prepare)?;
        let thread = spawn("serial-input", ThreadKind::SerialInput, events, move || {
            worker.run()
        })
        .map_err(InputError::Spawn)?;
        Ok(Self {
            stop,
            thread: Some(thread),
            _terminal: terminal,
        })
    }
}

impl Drop for SerialInput {
    fn drop(&mut self) {
        if let Err(error) = self.stop.write(1) {
            log::error!("cannot stop the terminal's input thread: {error}");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

struct Worker {
    epoll: Epoll,
    stdin: std::fs::File,
    drained: EventFd,
    stop: EventFd,
    serial: Arc<Serial>,
    /// Typed, but the port's buffer was full.
    pending: Vec<u8>,
}

impl Worker {
    fn watch_fixed(&self) -> io::Result<()> {
        for (fd, token) in [
            (self.drained.as_raw_fd(), DRAINED),
            (self.stop.as_raw_fd(), STOP),
        ] {
            self.epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )?;
        }
        Ok(())
    }

    fn watch_stdin(&self, on: bool) -> io::Result<()> {
        let operation = if on {
            ControlOperation::Add
        } else {
            ControlOperation::Delete
        };
        self.epoll.ctl(
            operation,
            self.stdin.as_raw_fd(),
            EpollEvent::new(EventSet::IN, STDIN),
        )
    }

    fn run(mut self) {
        // A plain file or /dev/null cannot be waited for and has nothing to
        // say to a console.
        let mut listening = self.watch_stdin(true).is_ok();
        let mut open = listening;
        loop {
            let mut ready = [EpollEvent::default(); 3];
            let count = match self.epoll.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("terminal input ends: {error}");
                    return;
                }
            };
            for event in &ready[..count] {
                match event.data() {
                    STOP => return,
                    DRAINED => {
                        let _ = self.drained.read();
                    }
                    _ => open = self.read_stdin(),
                }
            }
            let taken = self.serial.receive(&self.pending);
            self.pending.drain(..taken);
            // While the guest is behind, the rest stays in the terminal.
            let want = open && self.pending.is_empty();
            if want != listening && self.watch_stdin(want).is_ok() {
                listening = want;
            }
        }
    }

    /// False at the end of the input.
    fn read_stdin(&mut self) -> bool {
        let mut buffer = [0; 64];
        match self.stdin.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.pending.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
            ),
        }
    }
}
