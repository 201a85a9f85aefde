//! The thread that carries what is typed at the host's end of the console to
//! the serial port.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Serial;
use crate::console_end::{ConsoleEnd, RawTerminal};
use crate::event::EventSink;
use crate::sandbox::{ThreadKind, spawn};

/// Why the input thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// No event or epoll descriptor.
    #[error("Cannot prepare the serial port's input")]
    Prepare(#[source] io::Error),
    /// No thread.
    #[error("Cannot start the serial port's input thread")]
    Spawn(#[source] io::Error),
}

const INPUT: u64 = 0;
const DRAINED: u64 = 1;
const STOP: u64 = 2;
const LISTENER: u64 = 3;

/// The console's input in the guest's hands. Dropping it ends the thread and
/// puts the terminal back.
pub struct SerialInput {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
    _terminal: Option<RawTerminal>,
}

impl SerialInput {
    /// Starts the thread. `drained` is the event that `serial` signals.
    pub fn start(
        serial: Arc<Serial>,
        end: ConsoleEnd,
        drained: EventFd,
        events: EventSink,
    ) -> Result<Self, InputError> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(InputError::Prepare)?;
        let stop_reader = stop.try_clone().map_err(InputError::Prepare)?;
        // Who waits already is to have the guest's first byte.
        end.accept();
        let terminal = match end.is_terminal() {
            true => RawTerminal::enter().map_err(InputError::Prepare)?,
            false => None,
        };
        let worker = Worker {
            epoll: Epoll::new().map_err(InputError::Prepare)?,
            end,
            listening: None,
            drained,
            stop: stop_reader,
            serial,
            pending: Vec::new(),
        };
        worker.watch_fixed().map_err(InputError::Prepare)?;
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
            log::error!("cannot stop the serial port's input thread: {error}");
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
    end: ConsoleEnd,
    /// The input that is waited for.
    listening: Option<Arc<File>>,
    drained: EventFd,
    stop: EventFd,
    serial: Arc<Serial>,
    /// Typed, but the port's buffer was full.
    pending: Vec<u8>,
}

impl Worker {
    fn watch_fixed(&self) -> io::Result<()> {
        self.watch(&self.drained, DRAINED)?;
        self.watch(&self.stop, STOP)?;
        match self.end.listener() {
            Some(listener) => self.watch(listener, LISTENER),
            None => Ok(()),
        }
    }

    fn watch(&self, source: &impl AsRawFd, token: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, token);
        self.epoll
            .ctl(ControlOperation::Add, source.as_raw_fd(), event)
    }

    fn unwatch(&self, source: &impl AsRawFd) -> io::Result<()> {
        let operation = ControlOperation::Delete;
        self.epoll
            .ctl(operation, source.as_raw_fd(), EpollEvent::default())
    }

    /// Waits for input if there is any and the guest has taken what there was;
    /// while it is behind, the rest stays where it is typed.
    fn listen(&mut self) -> io::Result<()> {
        match (self.pending.is_empty(), self.listening.take()) {
            (true, None) => {
                let Some(input) = self.end.input() else {
                    return Ok(());
                };
                match self.watch(&*input, INPUT) {
                    Ok(()) => self.listening = Some(input),
                    // A plain file or /dev/null cannot be waited for and has
                    // nothing to say to a console.
                    Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.end.end_input(),
                    Err(error) => return Err(error),
                }
            }
            (false, Some(input)) => self.unwatch(&*input)?,
            (_, same) => self.listening = same,
        }
        Ok(())
    }

    fn run(mut self) {
        if let Err(error) = self.serve() {
            log::error!("the serial port's input ends: {error}");
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            self.listen()?;
            let mut ready = [EpollEvent::default(); 4];
            let count = match self.epoll.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in &ready[..count] {
                match event.data() {
                    STOP => return Ok(()),
                    DRAINED => {
                        let _ = self.drained.read();
                    }
                    LISTENER => self.accept()?,
                    _ => self.read()?,
                }
            }
            let taken = self.serial.receive(&self.pending);
            self.pending.drain(..taken);
        }
    }

    /// Whoever was connected before is not heard any more.
    fn accept(&mut self) -> io::Result<()> {
        if self.end.accept()
            && let Some(old) = self.listening.take()
        {
            self.unwatch(&*old)?;
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        // Gone, if somebody else has connected in the meantime.
        let Some(input) = &self.listening else {
            return Ok(());
        };
        let mut buffer = [0; 64];
        let ended = match (&**input).read(&mut buffer) {
            Ok(0) => true,
            Ok(count) => {
                self.pending.extend_from_slice(&buffer[..count]);
                false
            }
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
            ),
        };
        if ended && let Some(input) = self.listening.take() {
            self.unwatch(&*input)?;
            self.end.end_input();
        }
        Ok(())
    }
}
