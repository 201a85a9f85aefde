//! Opens files that a client names, without ever waiting for them.
//!
//! A name can lead to anything: opening a FIFO waits for its other end, reading
//! a terminal waits for a user, opening some devices has side effects. So the
//! kind of the file is checked before it is opened, it is opened with
//! `O_NONBLOCK`, and the kind of what was opened is checked once more.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// What a file is for, and so which kinds of files will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Holds a disk: a regular file or a block device.
    Disk,
    /// Is read or mapped as a whole: a regular file.
    Content,
    /// Random bytes come from it: a regular file or a character device.
    /// Reading it does not block.
    Entropy,
    /// Output goes to it: a regular file, a character device, or a FIFO that
    /// somebody has open for reading. Writing to it does not block.
    Output,
}

impl Purpose {
    fn accepts(self, metadata: &Metadata) -> bool {
        let kind = metadata.file_type();
        kind.is_file()
            || match self {
                Purpose::Disk => kind.is_block_device(),
                Purpose::Content => false,
                Purpose::Entropy => kind.is_char_device(),
                Purpose::Output => kind.is_char_device() || kind.is_fifo(),
            }
    }

    fn wanted(self) -> &'static str {
        match self {
            Purpose::Disk => "a regular file or a block device",
            Purpose::Content => "a regular file",
            Purpose::Entropy => "a regular file or a character device",
            Purpose::Output => "a regular file, a character device or a FIFO with a reader",
        }
    }

    fn check(self, metadata: &Metadata) -> io::Result<()> {
        if self.accepts(metadata) {
            return Ok(());
        }
        Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("it is {}, not {}", kind_of(metadata), self.wanted()),
        ))
    }

    /// Whether reads and writes keep from blocking. Regular files and block
    /// devices do not know the flag, but io_uring would obey it for the
    /// latter and fail requests that have to wait.
    fn stays_nonblocking(self) -> bool {
        matches!(self, Purpose::Entropy | Purpose::Output)
    }
}

fn kind_of(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () if kind.is_block_device() => "a block device",
        () => "a regular file",
    }
}

/// Opens `path` as `options` say. The options' own `custom_flags` are replaced
/// by `flags`.
///
/// # Errors
/// The kernel's, and [`ErrorKind::InvalidInput`] if the file is of a kind that
/// does not serve the purpose.
pub fn open_with(
    path: &Path,
    purpose: Purpose,
    options: &mut OpenOptions,
    flags: OFlags,
) -> io::Result<File> {
    // Before it is opened, because that alone can have effects: it rewinds
    // tapes and starts watchdogs. What does not exist may be about to be made.
    let is_fifo = match std::fs::metadata(path) {
        Ok(metadata) => {
            purpose.check(&metadata)?;
            metadata.file_type().is_fifo()
        }
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = options
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENXIO) if is_fifo => io::Error::new(
                ErrorKind::InvalidInput,
                "it is a FIFO that nobody has open for reading",
            ),
            _ => error,
        })?;
    // The name may lead to something else by now.
    purpose.check(&file.metadata()?)?;
    if !purpose.stays_nonblocking() {
        set_blocking(&file)?;
    }
    Ok(file)
}

/// Opens `path` for reading.
///
/// # Errors
/// As for [`open_with`].
pub fn open(path: &Path, purpose: Purpose) -> io::Result<File> {
    open_with(path, purpose, File::options().read(true), OFlags::empty())
}

/// Makes `path` an empty file to write to, or opens the device or FIFO there.
///
/// # Errors
/// As for [`open_with`].
pub fn create_output(path: &Path) -> io::Result<File> {
    open_with(
        path,
        Purpose::Output,
        File::options().write(true).create(true).truncate(true),
        OFlags::empty(),
    )
}

/// Opens `path` like [`create_output`], but a FIFO also when nobody reads it
/// yet: what is written is there when somebody does.
///
/// # Errors
/// As for [`open_with`].
pub fn create_output_before_reader(path: &Path) -> io::Result<File> {
    let is_fifo = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    if !is_fifo {
        return create_output(path);
    }
    // With both ends open, neither opening nor writing needs another reader.
    let mut options = File::options();
    options.read(true).write(true);
    open_with(path, Purpose::Output, &mut options, OFlags::empty())
}

/// Lets reads and writes of a file wait again, for a thread that may.
///
/// # Errors
/// The kernel's.
pub fn set_blocking(file: &File) -> io::Result<()> {
    Ok(fcntl_setfl(file, fcntl_getfl(file)? - OFlags::NONBLOCK)?)
}

/// Whether a process listens on the socket at `path`. One whose backlog is
/// full listens as well; connecting to it the usual way would wait.
#[must_use]
pub fn is_served(path: &Path) -> bool {
    let connected = || -> io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok(connect(socket.as_fd(), &SocketAddrUnix::new(path)?)?)
    };
    match connected() {
        Ok(()) => true,
        // Whatever else the reason is, it may be somebody else's.
        Err(error) => !matches!(
            error.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::NotFound
        ),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::path::PathBuf;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// A FIFO that nobody else has open.
    pub(crate) fn fifo() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
        (folder, path)
    }

    /// What `work` gives; fails instead of waiting for it for ever.
    pub(crate) fn within_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = channel();
        std::thread::spawn(move || sender.send(work()));
        receiver
            .recv_timeout(Duration::from_secs(20))
            .expect("it blocks")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::testing::{fifo, within_time};
    use super::*;

    const PURPOSES: [Purpose; 4] = [
        Purpose::Disk,
        Purpose::Content,
        Purpose::Entropy,
        Purpose::Output,
    ];

    #[test]
    fn each_purpose_accepts_its_kinds_of_files_and_refuses_others_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "content").unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), 0o600.into()).unwrap();
        let _listener = UnixListener::bind(path("socket")).unwrap();
        for (name, accepted) in [
            (path("file"), &PURPOSES[..]),
            (path("fifo"), &[]),
            (path("socket"), &[]),
            (folder.path().to_owned(), &[]),
            ("/dev/null".into(), &[Purpose::Entropy, Purpose::Output]),
        ] {
            for purpose in PURPOSES {
                let target = name.clone();
                let opened = within_time(move || match purpose {
                    Purpose::Output => create_output(&target),
                    _ => open(&target, purpose),
                });
                let expected = accepted.contains(&purpose);
                assert_eq!(opened.is_ok(), expected, "{name:?} {purpose:?} {opened:?}");
                if let Err(error) = opened {
                    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                }
            }
        }
    }

    #[test]
    fn a_fifo_with_a_reader_takes_output_and_never_blocks() {
        let (_folder, path) = fifo();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let _reader = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        let error = within_time(move || {
            use std::io::Write;
            let mut output = create_output(&path).unwrap();
            loop {
                if let Err(error) = output.write(&[0; 4096]) {
                    return error;
                }
            }
        });
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn disks_are_read_and_written_as_usual_once_they_are_open() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let opened = open(file.path(), Purpose::Disk).unwrap();
        assert!(!fcntl_getfl(&opened).unwrap().contains(OFlags::NONBLOCK));
    }

    #[test]
    fn a_listener_whose_backlog_is_full_still_serves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        assert!(is_served(&path));
        let target = path.clone();
        assert!(within_time(move || (0..4).all(|_| is_served(&target))));
        drop(listener);
        assert!(!is_served(&path));
        assert!(!is_served(&folder.path().join("missing")));
    }
}
