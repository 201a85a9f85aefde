//! The host's side: a socket to connect to the guest through, and sockets that
//! the guest connects to.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::host_file::is_served;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};

use crate::acceptor::Acceptor;

/// Long enough for the word, a port and the end of the line.
const LONGEST_LINE: usize = 32;

/// The socket that host programs connect to. It goes with the value.
pub(super) struct Listener {
    socket: Acceptor,
    path: PathBuf,
}

impl Listener {
    /// Listens on `path`. A socket that nobody listens on any more gives way.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && is_abandoned(path) => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            result => result?,
        };
        Ok(Self {
            socket: Acceptor::new(socket, &path.display().to_string())?,
            path: path.to_owned(),
        })
    }

    /// Somebody who wants to connect, if there is anybody.
    pub(super) fn accept(&self) -> Option<UnixStream> {
        self.socket.accept()
    }

    /// Connects to the host program that serves a port of the host.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        // A program that does not accept must not stop this thread.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket.into())
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn is_abandoned(path: &Path) -> bool {
    // Connecting to a plain file is refused just the same.
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && !is_served(path)
}

/// A program that has not said yet which port it wants.
pub(super) struct PendingConnect {
    pub(super) stream: UnixStream,
    /// When it has had time enough.
    pub(super) deadline: Instant,
}

/// What a pending has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectRequest {
    /// Not all of it yet.
    Unfinished,
    /// A port of the guest.
    Port(u32),
    /// Nonsense, or nothing.
    None,
}

impl PendingConnect {
    /// Reads the wish. What follows it stays in the stream: it is for the
    /// guest.
    pub(super) fn listen(&mut self) -> ConnectRequest {
        let mut line = [0u8; LONGEST_LINE];
        let peeked = recv(&self.stream, &mut line, RecvFlags::PEEK);
        let count = match peeked {
            Ok((count, _)) if count > 0 => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return ConnectRequest::Unfinished;
            }
            _ => return ConnectRequest::None,
        };
        let wish = parse(&line[..count]);
        if let ConnectRequest::Port(_) = wish
            && let Some(end) = line.iter().position(|&byte| byte == b'\n')
        {
            // It is there: it was seen just now.
            let _ = recv(&self.stream, &mut line[..=end], RecvFlags::empty());
        }
        wish
    }
}

/// Understands `CONNECT <port>` with the end of the line.
fn parse(bytes: &[u8]) -> ConnectRequest {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return if bytes.len() < LONGEST_LINE {
            ConnectRequest::Unfinished
        } else {
            ConnectRequest::None
        };
    };
    let port = str::from_utf8(&bytes[..end]).ok().and_then(|line| {
        let (word, port) = line.trim_end().split_once(' ')?;
        word.eq_ignore_ascii_case("connect").then_some(port)
    });
    match port.map(str::parse) {
        Some(Ok(port)) => ConnectRequest::Port(port),
        _ => ConnectRequest::None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_line_is_understood_whatever_its_end() {
        assert_eq!(parse(b"CONNECT 52\nrest"), ConnectRequest::Port(52));
        assert_eq!(
            parse(b"connect 4294967295\r\n"),
            ConnectRequest::Port(u32::MAX)
        );
        assert_eq!(parse(b"CONNECT 52"), ConnectRequest::Unfinished);
        assert_eq!(parse(b""), ConnectRequest::Unfinished);
        for line in [
            "CONNECT\n",
            "CONNECT 4294967296\n",
            "CONNECT -1\n",
            "CONNECT  1\n",
            "GET / HTTP/1.1\n",
            "\n",
            "CONNECT 1234567890123456789012345",
        ] {
            assert_eq!(parse(line.as_bytes()), ConnectRequest::None, "{line:?}");
        }
    }

    #[test]
    fn data_behind_the_line_stays_in_the_stream() {
        let (mut program, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut pending = PendingConnect {
            stream,
            deadline: Instant::now(),
        };
        assert_eq!(pending.listen(), ConnectRequest::Unfinished);
        program.write_all(b"CONN").unwrap();
        assert_eq!(pending.listen(), ConnectRequest::Unfinished);
        program.write_all(b"ECT 7\nhello").unwrap();
        assert_eq!(pending.listen(), ConnectRequest::Port(7));
        let mut rest = [0; 10];
        assert_eq!(pending.stream.read(&mut rest).unwrap(), 5);
        assert_eq!(&rest[..5], b"hello");
        drop(program);
        assert_eq!(pending.listen(), ConnectRequest::None);
    }

    #[test]
    fn a_socket_gives_way_only_if_nobody_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = Listener::bind(&path).unwrap();
        assert!(Listener::bind(&path).is_err());
        assert!(first.connect(9).is_err());
        drop(first);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::bind(&path).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&path).is_err());
        assert!(path.exists());
    }
}
