//! The host's end of a console: a terminal, a file, a pseudo terminal, a
//! socket, or nothing.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};

use crate::memory::ScatterList;

/// How long a reader that was quick so far may let the guest wait.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The host's end.
#[derive(Debug, Default)]
pub struct ConsoleEnd {
    input: Option<File>,
    output: Option<File>,
    socket: Option<Socket>,
    /// The other end of a pseudo terminal: while it is open, programs may come
    /// and go without an error on ours.
    _peer: Option<OwnedFd>,
    /// Output waits for a reader in vain and is dropped.
    stalled: bool,
}

#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl ConsoleEnd {
    /// Output is dropped and there is no input.
    #[must_use]
    pub fn null() -> Self {
        Self::default()
    }

    /// Standard input and output, in whatever mode they are.
    pub fn terminal() -> io::Result<Self> {
        Ok(Self {
            input: Some(io::stdin().as_fd().try_clone_to_owned()?.into()),
            output: Some(io::stdout().as_fd().try_clone_to_owned()?.into()),
            ..Self::default()
        })
    }

    /// The end of a file, which is made `anew` or goes on. No input.
    pub fn file(path: &Path, anew: bool) -> io::Result<Self> {
        if anew {
            File::create(path)?;
        }
        Ok(Self {
            output: Some(File::options().append(true).open(path)?),
            ..Self::default()
        })
    }

    /// A new pseudo terminal, and where programs find it.
    pub fn pseudo_terminal() -> io::Result<(Self, PathBuf)> {
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
        let end = Self {
            input: Some(main.try_clone()?.into()),
            output: Some(main.into()),
            _peer: Some(peer),
            ..Self::default()
        };
        Ok((end, path))
    }

    /// A socket; whoever connected last is the other end.
    pub fn socket(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket: Some(Socket {
                listener,
                path: path.to_owned(),
            }),
            ..Self::default()
        })
    }

    /// Columns and rows, if the end has a size.
    #[must_use]
    pub fn size(&self) -> Option<(u16, u16)> {
        let size = tcgetwinsize(self.input.as_ref()?).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    }

    pub(super) fn input(&self) -> Option<&File> {
        self.input.as_ref()
    }

    pub(super) fn listener(&self) -> Option<&impl AsRawFd> {
        self.socket.as_ref().map(|socket| &socket.listener)
    }

    /// Takes whoever connects; true if somebody did.
    pub(super) fn accept(&mut self) -> io::Result<bool> {
        let Some(socket) = &self.socket else {
            return Ok(false);
        };
        let stream: UnixStream = match socket.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        let input = stream.try_clone()?;
        self.input = Some(OwnedFd::from(input).into());
        self.output = Some(OwnedFd::from(stream).into());
        self.stalled = false;
        Ok(true)
    }

    /// There is no more input. Who has connected is gone then.
    pub(super) fn end_input(&mut self) {
        self.input = None;
        if self.socket.is_some() {
            self.output = None;
        }
    }

    /// Writes everything, or drops what nobody takes: the guest waits for its
    /// console with interrupts off.
    pub(super) fn write(&mut self, bytes: &mut ScatterList) {
        let Some(output) = &self.output else {
            return;
        };
        let mut done = 0;
        while done < bytes.length() {
            let error = match bytes.write_to(output.as_fd(), done, usize::MAX) {
                Ok(0) => return,
                Ok(count) => {
                    done += count;
                    self.stalled = false;
                    continue;
                }
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock if !self.stalled => {
                    self.stalled = !becomes_writable(output.as_fd());
                }
                _ => {
                    log::debug!("console output is lost: {error}");
                    return;
                }
            }
        }
    }
}

fn becomes_writable(output: BorrowedFd<'_>) -> bool {
    let mut waiting = [PollFd::from_borrowed_fd(output, PollFlags::OUT)];
    matches!(poll(&mut waiting, Some(&PATIENCE)), Ok(1..))
}
