//! The socket in the file system: who owns it, and that nothing of it is left
//! behind.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use thiserror::Error;

use crate::acceptor::Acceptor;
use crate::host_file::{Purpose, is_served, open_with};
use crate::sandbox::{PathRule, set_private_umask};

/// Why there is no socket to listen on.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another VMM has it.
    #[error("The API socket {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// Something else is there, and not ours to remove.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The lock file cannot be used.
    #[error("Cannot lock {}", .path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Who may connect cannot be set.
    #[error("Cannot set the permissions of {}", .path.display())]
    Permissions {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such group.
    #[error("There is no group \"{0}\"")]
    NoGroup(String),
    /// The socket cannot be made.
    #[error("Cannot listen on the API socket {}", .path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket. Dropping it removes the socket and its lock file, if
/// they are still the ones that were made.
#[derive(Debug)]
pub struct ApiSocket {
    listener: Acceptor,
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    identity: FileIdentity,
    // Held for as long as the socket exists.
    _lock: LockFile,
}

impl ApiSocket {
    /// Listens at `path`, which only the user may then access. From here on
    /// every file that the process makes is the user's alone.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let lock = LockFile::acquire(path)?;
        let listen_error = |source| SocketError::Listen {
            path: path.to_owned(),
            source,
        };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(listen_error(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            // A VMM that takes no lock may still listen.
            Ok(_) if is_served(path) => {
                return Err(SocketError::InUse(path.to_owned()));
            }
            Ok(_) => fs::remove_file(path).map_err(listen_error)?,
        }
        set_private_umask();
        let listener = UnixListener::bind(path).map_err(listen_error)?;
        let identity = FileIdentity::of(&fs::symlink_metadata(path).map_err(listen_error)?);
        Self::adopt(listener, path).map(|mut socket| {
            socket.place = Some(Place {
                path: path.to_owned(),
                identity,
                _lock: lock,
            });
            socket
        })
    }

    /// Listens at `path`, and lets those connect whom `mode` admits; `group`, a
    /// name or a number, becomes the socket's.
    ///
    /// # Errors
    ///
    /// Those of [`bind`](Self::bind), a group that does not exist, and one that
    /// this process may not give the socket to.
    pub fn bind_for(path: &Path, mode: u32, group: Option<&str>) -> Result<Self, SocketError> {
        let group = group.map(group_id).transpose()?;
        let socket = Self::bind(path)?;
        // First the owner, so that no other group is let in for a moment.
        group
            .map_or(Ok(()), |group| lchown(path, None, Some(group)))
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
            .map_err(|source| SocketError::Permissions {
                path: path.to_owned(),
                source,
            })?;
        Ok(socket)
    }

    /// Uses a socket that somebody else made and will remove.
    pub fn from_listener(listener: UnixListener) -> Result<Self, SocketError> {
        Self::adopt(listener, Path::new("(inherited)"))
    }

    fn adopt(listener: UnixListener, path: &Path) -> Result<Self, SocketError> {
        let listener = Acceptor::new(listener, "api").map_err(|source| SocketError::Listen {
            path: path.to_owned(),
            source,
        })?;
        Ok(ApiSocket {
            listener,
            place: None,
        })
    }

    /// The listening socket; it does not block.
    pub(super) fn listener(&self) -> &Acceptor {
        &self.listener
    }

    /// What its end needs of the file system.
    pub(super) fn reachable(&self) -> Option<PathRule> {
        let place = self.place.as_ref()?;
        Some(PathRule::for_socket(&place.path))
    }

    /// A name for the machine behind it: the path; empty if it is not known.
    pub fn name(&self) -> String {
        self.place
            .as_ref()
            .map_or_else(String::new, |place| place.path.display().to_string())
    }
}

/// The number of a group.
fn group_id(group: &str) -> Result<u32, SocketError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    nix::unistd::Group::from_name(group)
        .ok()
        .flatten()
        .map(|found| found.gid.as_raw())
        .ok_or_else(|| SocketError::NoGroup(group.to_owned()))
}

impl Drop for Place {
    fn drop(&mut self) {
        // The socket goes first, and the lock after it: whoever gets the lock
        // then finds no socket.
        self.identity.remove(&self.path);
    }
}

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    fn of(metadata: &fs::Metadata) -> Self {
        FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }

    fn is_at(self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|metadata| Self::of(&metadata) == self)
    }

    fn remove(self, path: &Path) {
        if self.is_at(path)
            && let Err(error) = fs::remove_file(path)
        {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

/// `<socket>.lock`, locked.
#[derive(Debug)]
struct LockFile {
    path: PathBuf,
    identity: FileIdentity,
    // Closing it gives the lock back.
    _file: File,
}

impl LockFile {
    fn acquire(socket: &Path) -> Result<Self, SocketError> {
        let mut path = OsString::from(socket);
        path.push(".lock");
        let path = PathBuf::from(path);
        let lock_error = |source| SocketError::Lock {
            path: path.clone(),
            source,
        };
        loop {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).write(true).mode(0o600);
            let file = open_with(&path, Purpose::Content, &mut options, OFlags::empty())
                .map_err(lock_error)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(SocketError::InUse(socket.to_owned()));
                }
                Err(TryLockError::Error(error)) => return Err(lock_error(error)),
            }
            // Its last owner may have removed the file after it was opened
            // here; then the lock is worth nothing.
            let identity = FileIdentity::of(&file.metadata().map_err(lock_error)?);
            if identity.is_at(&path) {
                return Ok(LockFile {
                    path,
                    identity,
                    _file: file,
                });
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        self.identity.remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn lock_path(path: &Path) -> PathBuf {
        PathBuf::from(format!("{}.lock", path.display()))
    }

    #[test]
    fn socket_and_lock_are_private_and_go_with_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let socket = ApiSocket::bind(&path).unwrap();
        for path in [&path, &lock_path(&path)] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", path.display());
        }
        assert_eq!(socket.name(), path.display().to_string());
        drop(socket);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn others_may_connect_where_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.sock");
        let own = fs::metadata(dir.path()).unwrap().gid().to_string();
        let socket = ApiSocket::bind_for(&path, 0o660, Some(&own)).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
        assert_eq!(metadata.gid().to_string(), own);
        drop(socket);
        assert!(matches!(
            ApiSocket::bind_for(&path, 0o660, Some("no such group")),
            Err(SocketError::NoGroup(_))
        ));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_second_owner_is_refused_and_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let _socket = ApiSocket::bind(&path).unwrap();
        assert!(matches!(ApiSocket::bind(&path), Err(SocketError::InUse(_))));
        assert!(UnixStream::connect(&path).is_ok());
        assert!(lock_path(&path).exists());
    }

    #[test]
    fn an_owner_without_a_lock_is_noticed_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(ApiSocket::bind(&path), Err(SocketError::InUse(_))));
        assert!(path.exists());
        assert!(!lock_path(&path).exists());
    }

    #[test]
    fn a_socket_left_behind_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        fs::write(lock_path(&path), "").unwrap();
        assert!(path.exists());
        let _socket = ApiSocket::bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(
            ApiSocket::bind(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"data");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        assert!(matches!(
            ApiSocket::bind(Path::new("/no/such/directory/api.sock")),
            Err(SocketError::Lock { .. })
        ));
    }

    #[test]
    fn a_name_too_long_for_a_socket_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(120));
        assert!(matches!(
            ApiSocket::bind(&path),
            Err(SocketError::Listen { .. })
        ));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
