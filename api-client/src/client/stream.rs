//! A Unix stream whose every operation ends at one deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Between attempts at a server whose queue of clients is full.
const RETRY: Duration = Duration::from_millis(5);

/// A connected stream with a deadline.
pub struct DeadlineStream {
    stream: UnixStream,
    deadline: Instant,
    /// After so long without a byte, whether to wait on.
    check: Option<(Duration, Box<dyn Fn() -> bool>)>,
}

impl DeadlineStream {
    /// Connects. A server that hangs lets its queue fill up, and connecting
    /// would then wait for ever; so it must not wait at all.
    pub fn connect(path: &Path, deadline: Instant) -> io::Result<Self> {
        loop {
            match connect_now(path) {
                Ok(socket) => {
                    let stream = UnixStream::from(socket);
                    stream.set_nonblocking(false)?;
                    return Ok(DeadlineStream {
                        stream,
                        deadline,
                        check: None,
                    });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(remaining(deadline)?.min(RETRY));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A socket that does not block, connected to a server.
///
/// # Errors
///
/// `WouldBlock` if the server's queue of clients is full; otherwise what
/// `connect` says.
pub fn connect_now(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

impl DeadlineStream {
    /// From now on, a read that had to wait for `interval` goes on only if
    /// `alive` says so.
    pub fn check_each(&mut self, interval: Duration, alive: impl Fn() -> bool + 'static) {
        self.check = Some((interval, Box::new(alive)));
    }

    /// Sends everything, with descriptors at the first byte.
    pub fn send(&mut self, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
        let mut done = 0;
        if !descriptors.is_empty() {
            self.stream
                .set_write_timeout(Some(remaining(self.deadline)?))?;
            done = self
                .stream
                .send_with_fds(&[bytes], descriptors)
                .map_err(|error| name_time_out(error.into()))?;
        }
        self.write_all(&bytes[done..])
    }
}

fn timed_out() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "The VMM does not answer in time")
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    deadline
        .checked_duration_since(Instant::now())
        .filter(|remaining| !remaining.is_zero())
        .ok_or_else(timed_out)
}

fn name_time_out(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => timed_out(),
        _ => error,
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut wait = remaining(self.deadline)?;
            if let Some((interval, _)) = &self.check {
                wait = wait.min(*interval);
            }
            self.stream.set_read_timeout(Some(wait))?;
            match (self.stream.read(buffer), &self.check) {
                (Err(error), Some((_, alive))) if error.kind() == ErrorKind::WouldBlock => {
                    if !alive() {
                        return Err(timed_out());
                    }
                }
                (result, _) => return result.map_err(name_time_out),
            }
        }
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream
            .set_write_timeout(Some(remaining(self.deadline)?))?;
        self.stream.write(bytes).map_err(name_time_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
