//! A listening Unix socket whose owner never fails because a client cannot be
//! accepted.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::log_limit::LogLimit;

/// How long the thread does nothing when a client can be neither accepted nor
/// refused: the socket stays readable, and the thread would spin on it.
const BACK_OFF: Duration = Duration::from_millis(10);

/// A listener and a descriptor in reserve. Where descriptors run out, the
/// reserve makes room for one client at a time, who is sent away.
pub struct Acceptor {
    listener: UnixListener,
    reserve: Mutex<Option<OwnedFd>>,
    limit: LogLimit,
}

impl Acceptor {
    /// Accepts clients of `listener`, which no longer blocks. `name` is for the
    /// log.
    ///
    /// # Errors
    /// There is no descriptor left for the reserve.
    pub fn new(listener: UnixListener, name: &str) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let reserve = listener.as_fd().try_clone_to_owned()?;
        Ok(Self {
            listener,
            reserve: Mutex::new(Some(reserve)),
            limit: LogLimit::new(name),
        })
    }

    /// The listening socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The next client, whose stream does not block. None if there is none, or
    /// if it could not be accepted: the socket is readable again if there are
    /// more.
    pub fn accept(&self) -> Option<UnixStream> {
        let accepted = self.listener.accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        let error = match accepted {
            Ok(stream) => return Some(stream),
            Err(error) => error,
        };
        match (error.kind(), error.raw_os_error()) {
            (ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted, _) => {}
            (_, Some(libc::EMFILE | libc::ENFILE)) => match self.refuse() {
                // There was none: the kernel looks for a descriptor first.
                Err(second) if second.kind() == ErrorKind::WouldBlock => {}
                refused => self.failed(&error, refused.is_ok()),
            },
            _ => self.failed(&error, false),
        }
        None
    }

    fn failed(&self, error: &io::Error, refused: bool) {
        self.limit
            .warn(&format_args!("a client cannot be accepted: {error}"));
        if !refused {
            std::thread::sleep(BACK_OFF);
        }
    }

    /// Sends one client away.
    fn refuse(&self) -> io::Result<()> {
        let mut reserve = self.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        *reserve = None;
        let refused = self.listener.accept().map(drop);
        // Another thread may have been quicker; then there is none until there
        // are descriptors again.
        *reserve = self.listener.as_fd().try_clone_to_owned().ok();
        refused
    }
}

impl AsRawFd for Acceptor {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Acceptor").field(&self.listener).finish()
    }
}

/// For tests in which descriptors run out: runs the test `name`, which calls
/// [`child`](testing::is_child), in a process of its own.
#[cfg(test)]
pub(crate) mod testing {
    use std::fs::File;
    use std::process::Command;

    const CHILD: &str = "DESCRIPTORS_TEST";

    /// True in the process in which descriptors may run out. Otherwise starts
    /// that process with the test `name`, whose outcome is this test's.
    pub(crate) fn is_child(name: &str) -> bool {
        if std::env::var(CHILD).as_deref() == Ok(name) {
            return true;
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, name)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
        false
    }

    /// Takes all descriptors that the process may have but `left`.
    pub(crate) fn exhaust(left: usize) -> Vec<File> {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = Rlimit {
            current: Some(256),
            ..getrlimit(Resource::Nofile)
        };
        setrlimit(Resource::Nofile, limit).unwrap();
        let mut taken = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            taken.push(file);
        }
        taken.truncate(taken.len() - left);
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::testing::{exhaust, is_child};
    use super::*;

    #[test]
    fn a_client_too_many_is_sent_away_and_the_next_one_served() {
        if !is_child("acceptor::tests::a_client_too_many_is_sent_away_and_the_next_one_served") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let acceptor = Acceptor::new(UnixListener::bind(&path).unwrap(), "test").unwrap();
        assert!(acceptor.accept().is_none());
        let mut clients = [0; 20].map(|_| UnixStream::connect(&path).unwrap());
        let taken = exhaust(0);
        for client in &mut clients {
            assert!(acceptor.accept().is_none());
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
        // All of them were sent away, with few lines.
        assert!(acceptor.accept().is_none());
        assert_eq!(acceptor.limit.lines(), (5, 15));
        drop(taken);
        let mut client = UnixStream::connect(&path).unwrap();
        acceptor.accept().unwrap().write_all(b"x").unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 1);
    }
}
