//! The host's end of a console: a terminal, a file, a pseudo terminal, a
//! socket, or nothing.
//!
//! Ends belong to the configuration and not to one boot of the machine: who
//! has opened the pseudo terminal or connected to the socket stays connected
//! when the guest reboots. A machine's devices hold clones.

mod terminal;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};

use crate::host_file::{Purpose, create_output, is_served, open_with};
pub use terminal::RawTerminal;

use crate::acceptor::Acceptor;

/// How long a reader that was quick so far may let the guest wait.
const WRITE_TIMEOUT: Duration = Duration::from_millis(100);
/// How long it may let it wait in all before one write is done.
const WRITE_TOTAL: Duration = Duration::from_secs(1);

/// Bytes kept for the next client of a socket.
const BACKLOG: usize = 1 << 20;

/// Where a console leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleTarget {
    /// Nowhere.
    Null,
    /// The terminal that the program was started on.
    Terminal,
    /// That terminal too, but its input goes to another console.
    TerminalOutput,
    /// A new pseudo terminal.
    PseudoTerminal,
    /// A file, made anew.
    File(PathBuf),
    /// A socket to connect to.
    Socket(PathBuf),
}

/// The host's end. Clones are the same end.
///
/// Its lock is taken to learn what the streams are, never while one is waited
/// for, and no other lock is taken while it is held.
#[derive(Debug, Clone)]
pub struct CharBackend(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    streams: Mutex<Streams>,
    socket: Option<Socket>,
    pseudo_terminal: Option<PseudoTerminal>,
    is_terminal: bool,
}

#[derive(Debug, Default)]
struct Streams {
    input: Option<Arc<File>>,
    output: Option<Arc<Output>>,
    /// The last that was sent to a socket while nobody was connected.
    backlog: VecDeque<u8>,
}

impl Streams {
    fn keep(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(BACKLOG)..];
        let excess = (self.backlog.len() + bytes.len()).saturating_sub(BACKLOG);
        self.backlog.drain(..excess);
        self.backlog.extend(bytes);
    }
}

#[derive(Debug)]
struct Output {
    file: File,
    /// A reader was waited for in vain: until it takes something, output is
    /// dropped at once.
    stalled: AtomicBool,
}

impl Output {
    fn new(file: File) -> Arc<Self> {
        Arc::new(Self {
            file,
            stalled: AtomicBool::new(false),
        })
    }

    fn send(&self, bytes: &[u8]) {
        self.write_with(bytes.len(), |output, done| {
            Ok(rustix::io::write(output, &bytes[done..])?)
        });
    }

    /// See [`CharBackend::write_with`].
    fn write_with(
        &self,
        length: usize,
        mut write: impl FnMut(BorrowedFd<'_>, usize) -> io::Result<usize>,
    ) {
        let file = self.file.as_fd();
        let mut done = 0;
        let mut waited = Duration::ZERO;
        while done < length {
            let error = match write(file, done) {
                Ok(0) => return,
                Ok(count) => {
                    done += count;
                    self.stalled.store(false, Ordering::Relaxed);
                    continue;
                }
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock
                    if !self.stalled.load(Ordering::Relaxed) && waited < WRITE_TOTAL =>
                {
                    let since = Instant::now();
                    let stalled = !becomes_writable(file);
                    self.stalled.store(stalled, Ordering::Relaxed);
                    waited += since.elapsed();
                }
                _ => {
                    log::debug!("console output is lost: {error}");
                    return;
                }
            }
        }
    }
}

#[derive(Debug)]
struct PseudoTerminal {
    path: PathBuf,
    /// The other end: while it is open, programs may come and go without an
    /// error on ours.
    _peer: OwnedFd,
}

#[derive(Debug)]
struct Socket {
    listener: Acceptor,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl CharBackend {
    /// Opens what a target names.
    pub fn open(target: &ConsoleTarget) -> io::Result<Self> {
        match target {
            ConsoleTarget::Null => Ok(Self::null()),
            ConsoleTarget::Terminal => Self::terminal(),
            ConsoleTarget::TerminalOutput => Self::terminal_output(),
            ConsoleTarget::PseudoTerminal => Self::pseudo_terminal(),
            ConsoleTarget::File(path) => Self::file(path),
            ConsoleTarget::Socket(path) => Self::socket(path),
        }
    }

    /// Output is dropped and there is no input.
    #[must_use]
    pub fn null() -> Self {
        Self::new(None, None, Shared::default())
    }

    fn new(input: Option<File>, output: Option<File>, shared: Shared) -> Self {
        Self(Arc::new(Shared {
            streams: Mutex::new(Streams {
                input: input.map(Arc::new),
                output: output.map(Output::new),
                backlog: VecDeque::new(),
            }),
            ..shared
        }))
    }

    /// Standard input and output, in whatever mode they are.
    fn terminal() -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = without_waiting(io::stdout().as_fd())?;
        let shared = Shared {
            is_terminal: true,
            ..Shared::default()
        };
        Ok(Self::new(Some(input.into()), Some(output.into()), shared))
    }

    /// Standard output, without the size of a terminal: that belongs to who has
    /// its input.
    fn terminal_output() -> io::Result<Self> {
        let output = without_waiting(io::stdout().as_fd())?;
        Ok(Self::new(None, Some(output.into()), Shared::default()))
    }

    /// A file, made anew. Every write goes to its end, wherever other programs
    /// have put that. No input. A named pipe that nobody reads is an error:
    /// to wait for its reader would hold up every other request.
    fn file(path: &Path) -> io::Result<Self> {
        // Stays open until the second is, lest a pipe's reader sees an end.
        let _made = create_output(path)?;
        let mut options = File::options();
        options.append(true);
        let output = open_with(path, Purpose::Output, &mut options, OFlags::empty())?;
        Ok(Self::new(None, Some(output), Shared::default()))
    }

    /// A new pseudo terminal.
    fn pseudo_terminal() -> io::Result<Self> {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&main)?;
        unlockpt(&main)?;
        let name = ptsname(&main, Vec::new())?;
        let path = PathBuf::from(std::ffi::OsString::from(
            name.into_string()
                .map_err(|_| io::Error::from(ErrorKind::InvalidData))?,
        ));
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let peer = rustix::fs::open(&path, flags, Mode::empty())?;
        let mut mode = tcgetattr(&peer)?;
        mode.make_raw();
        tcsetattr(&peer, OptionalActions::Now, &mode)?;
        fcntl_setfl(&main, fcntl_getfl(&main)? | OFlags::NONBLOCK)?;
        let shared = Shared {
            pseudo_terminal: Some(PseudoTerminal { path, _peer: peer }),
            ..Shared::default()
        };
        let input = main.try_clone()?;
        Ok(Self::new(Some(input.into()), Some(main.into()), shared))
    }

    /// A socket; whoever connected last is the other end. A socket that nobody
    /// serves any more is replaced.
    fn socket(path: &Path) -> io::Result<Self> {
        if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
            && !is_served(path)
        {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        let listener = Acceptor::new(listener, &path.display().to_string())?;
        let shared = Shared {
            socket: Some(Socket {
                listener,
                path: path.to_owned(),
            }),
            ..Shared::default()
        };
        Ok(Self::new(None, None, shared))
    }

    /// Where programs find the pseudo terminal, if it is one.
    #[must_use]
    pub fn pseudo_terminal_path(&self) -> Option<&Path> {
        let pseudo_terminal = self.0.pseudo_terminal.as_ref()?;
        Some(&pseudo_terminal.path)
    }

    /// Whether it is the terminal that the program was started on.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.0.is_terminal
    }

    /// Whether there is input, or may be some later.
    #[must_use]
    pub fn has_input(&self) -> bool {
        self.0.socket.is_some() || self.input().is_some()
    }

    /// Columns and rows, if the end has a size.
    #[must_use]
    pub fn size(&self) -> Option<(u16, u16)> {
        let size = tcgetwinsize(self.input()?).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    }

    /// What input is read from, if anything at the moment.
    #[must_use]
    pub fn input(&self) -> Option<Arc<File>> {
        self.streams().input.clone()
    }

    /// What becomes readable when somebody connects.
    #[must_use]
    pub fn listener(&self) -> Option<&UnixListener> {
        let socket = self.0.socket.as_ref()?;
        Some(socket.listener.listener())
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.0
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes whoever connects; true if somebody did. Somebody whom there are no
    /// descriptors for is sent away, and who was connected before stays.
    pub fn accept(&self) -> bool {
        let Some(socket) = &self.0.socket else {
            return false;
        };
        let Some(stream) = socket.listener.accept() else {
            return false;
        };
        let input = match stream.try_clone() {
            Ok(input) => input,
            Err(error) => {
                log::debug!("a console's client is sent away: {error}");
                return false;
            }
        };
        let output = Output::new(OwnedFd::from(stream).into());
        let mut streams = self.streams();
        let backlog = std::mem::take(&mut streams.backlog);
        // With the lock held: what the guest writes now comes after it.
        output.send(&Vec::from(backlog));
        *streams = Streams {
            input: Some(Arc::new(OwnedFd::from(input).into())),
            output: Some(output),
            backlog: VecDeque::new(),
        };
        true
    }

    /// There is no more input. Who has connected is gone then.
    pub fn end_input(&self) {
        let mut streams = self.streams();
        streams.input = None;
        if self.0.socket.is_some() {
            streams.output = None;
        }
    }

    /// Writes everything, or drops what nobody takes. A socket that nobody is
    /// connected to keeps the last MiB for the next who is.
    pub fn send(&self, bytes: &[u8]) {
        let mut streams = self.streams();
        match streams.output.clone() {
            Some(output) => {
                drop(streams);
                output.send(bytes);
            }
            None if self.0.socket.is_some() => streams.keep(bytes),
            None => {}
        }
    }

    /// Writes so many bytes with `write`, which is told how many of them are
    /// done, or drops what nobody takes: the guest waits for its console, and
    /// a slow reader keeps it for about a second at most. Ends with the first
    /// error of `write`.
    pub fn write_with(
        &self,
        length: usize,
        write: impl FnMut(BorrowedFd<'_>, usize) -> io::Result<usize>,
    ) {
        let output = self.streams().output.clone();
        if let Some(output) = output {
            output.write_with(length, write);
        }
    }
}

/// Never fails: what nobody takes is lost, as on an unplugged cable.
impl Write for CharBackend {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same output in a way that a full pipe or a stopped terminal is no reason
/// to wait. Whoever else has the descriptor is not to notice, so it takes a new
/// one; where that is not possible, writing may wait.
fn without_waiting(output: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = output.try_clone_to_owned()?;
    let file = File::from(copy.try_clone()?);
    let kind = file.metadata()?.file_type();
    if !kind.is_fifo() && !kind.is_char_device() {
        return Ok(copy);
    }
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty()).unwrap_or(copy))
}

fn becomes_writable(output: BorrowedFd<'_>) -> bool {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: WRITE_TIMEOUT.subsec_nanos().into(),
    };
    let mut waiting = [PollFd::from_borrowed_fd(output, PollFlags::OUT)];
    matches!(poll(&mut waiting, Some(&timeout)), Ok(1..))
}
