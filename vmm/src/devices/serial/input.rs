//! The thread that carries what is typed at the host's end of the console to
//! the serial port.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use event_manager::{
    Error, EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId,
    SubscriberOps,
};
use vmm_sys_util::eventfd::EventFd;

use super::Serial;
use crate::chardev::{CharBackend, RawTerminal};
use crate::event::EventSink;
use crate::sandbox::{ThreadKind, spawn};
use crate::sources::{Sources, io_error};

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

const INPUT: u32 = 0;
const DRAINED: u32 = 1;
const LISTENER: u32 = 2;
/// Sources that are served at a time.
const BATCH: usize = 4;

/// Who has the input.
enum Place {
    /// The thread.
    Thread(SubscriberId),
    /// Nobody reads it.
    Paused(Input),
    /// It is lost with its thread.
    Lost,
}

/// The console's input in the guest's hands. Dropping it ends the thread and
/// puts the terminal back.
pub struct SerialInput {
    ended: Arc<AtomicBool>,
    endpoint: RemoteEndpoint<Input>,
    place: Place,
    thread: Option<JoinHandle<()>>,
    _terminal: Option<RawTerminal>,
}

impl SerialInput {
    /// Starts the thread. `drained` is the event that `serial` signals; `pending`
    /// was typed before and has yet to reach it.
    ///
    /// # Errors
    /// The host gives no thread or descriptor.
    pub fn start(
        serial: Arc<Serial>,
        end: CharBackend,
        drained: Arc<EventFd>,
        pending: Vec<u8>,
        events: EventSink,
    ) -> Result<Self, InputError> {
        let prepare = |error| InputError::Prepare(io_error(error));
        let mut manager = EventManager::new_with_capacity(BATCH).map_err(prepare)?;
        let endpoint = manager.remote_endpoint();
        // Who waits already is to have the guest's first byte.
        end.accept();
        let terminal = match end.is_terminal() {
            true => RawTerminal::enter().map_err(InputError::Prepare)?,
            false => None,
        };
        let id = manager.add_subscriber(Input {
            end,
            listening: None,
            drained,
            serial,
            pending,
        });
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = spawn("serial-input", ThreadKind::SerialInput, events, move || {
            while !end.load(Ordering::Relaxed) {
                if let Err(error) = manager.run() {
                    log::error!("the serial port's input ends: {error}");
                    return;
                }
            }
        })
        .map_err(InputError::Spawn)?;
        Ok(Self {
            ended,
            endpoint,
            place: Place::Thread(id),
            thread: Some(thread),
            _terminal: terminal,
        })
    }

    /// Leaves what is typed where it is typed, and returns when the port gets no
    /// more of it.
    pub fn pause(&mut self) {
        let Place::Thread(id) = self.place else {
            return;
        };
        self.place = match self
            .endpoint
            .call_blocking(move |ops| ops.remove_subscriber(id))
        {
            Ok(mut input) => {
                // It was taken out of what is waited for.
                input.listening = None;
                Place::Paused(input)
            }
            Err(error) => {
                log::error!("the serial port's input is lost: {error}");
                Place::Lost
            }
        };
    }

    /// What was typed and the port had no room for, while the input is paused.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        match &self.place {
            Place::Paused(input) => &input.pending,
            Place::Thread(_) | Place::Lost => &[],
        }
    }

    /// Carries what is typed to the port again.
    pub fn resume(&mut self) {
        self.place = match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Paused(input) => {
                let added = self
                    .endpoint
                    .call_blocking(move |ops| Ok::<_, Error>(ops.add_subscriber(input)));
                added.map_or_else(
                    |error| {
                        log::error!("the serial port's input is lost: {error}");
                        Place::Lost
                    },
                    Place::Thread,
                )
            }
            other => other,
        };
    }
}

impl Drop for SerialInput {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Err(error) = self.endpoint.kick() {
            log::error!("cannot stop the serial port's input thread: {error}");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

struct Input {
    end: CharBackend,
    /// The input that is waited for.
    listening: Option<Arc<File>>,
    drained: Arc<EventFd>,
    serial: Arc<Serial>,
    /// Typed, but the port's buffer was full.
    pending: Vec<u8>,
}

impl MutEventSubscriber for Input {
    fn init(&mut self, ops: &mut EventOps) {
        let drained = ops.add_source(&*self.drained, DRAINED);
        let listener = self
            .end
            .listener()
            .map_or(Ok(()), |listener| ops.add_source(listener, LISTENER));
        if let Err(error) = drained.and(listener) {
            log::error!("the serial port's input is not heard: {error}");
        }
        self.hand_over();
        self.listen(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            DRAINED => drop(self.drained.read()),
            LISTENER => self.accept(ops),
            _ => self.read(ops),
        }
        self.hand_over();
        self.listen(ops);
    }
}

impl Input {
    /// Gives the port as much as it has room for.
    fn hand_over(&mut self) {
        let taken = self.serial.receive(&self.pending);
        self.pending.drain(..taken);
    }

    /// Waits for input if there is any and the guest has taken what there was;
    /// while it is behind, the rest stays where it is typed. Where the host
    /// refuses to wait, the next event tries again.
    fn listen(&mut self, ops: &mut EventOps) {
        match (self.pending.is_empty(), self.listening.take()) {
            (true, None) => {
                let Some(input) = self.end.input() else {
                    return;
                };
                match ops.add_source(&*input, INPUT) {
                    Ok(()) => self.listening = Some(input),
                    // A plain file or /dev/null cannot be waited for and has
                    // nothing to say to a console.
                    Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.end.end_input(),
                    Err(error) => log::debug!("the input cannot be waited for: {error}"),
                }
            }
            // It was waited for, as below.
            (false, Some(input)) => drop(ops.remove_source(&*input)),
            (_, same) => self.listening = same,
        }
    }

    /// Whoever was connected before is not heard any more.
    fn accept(&mut self, ops: &mut EventOps) {
        if self.end.accept()
            && let Some(old) = self.listening.take()
        {
            let _ = ops.remove_source(&*old);
        }
    }

    fn read(&mut self, ops: &mut EventOps) {
        // Gone, if somebody else has connected in the meantime.
        let Some(input) = &self.listening else {
            return;
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
            let _ = ops.remove_source(&*input);
            self.end.end_input();
        }
    }
}
