//! Advisory locks, so that two machines do not write to one image by mistake.
//! They belong to the open file, and so end with it however the process ends.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};

/// What the lock covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockRange {
    /// The bytes of the file as it is now.
    Bytes,
    /// The file, however long it grows.
    Full,
}

/// Locks a file for as long as it is open: shared with other readers, or
/// alone.
pub(super) fn acquire(file: &File, range: LockRange, read_only: bool) -> io::Result<()> {
    let length = match range {
        LockRange::Full => 0,
        LockRange::Bytes => file.metadata()?.len(),
    };
    let kind = if read_only {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        // For block devices, whose length reads as zero, this is all of it.
        l_len: libc::off_t::try_from(length).unwrap_or(0),
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock))
        .map(drop)
        .map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_exclude_everybody_and_readers_exclude_writers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .open(file.path())
                .unwrap()
        };
        for range in [LockRange::Bytes, LockRange::Full] {
            let writer = open();
            acquire(&writer, range, false).unwrap();
            for read_only in [false, true] {
                let error = acquire(&open(), range, read_only).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{read_only}");
            }
            drop(writer);
            let (first, second) = (open(), open());
            acquire(&first, range, true).unwrap();
            acquire(&second, range, true).unwrap();
            assert!(acquire(&open(), range, false).is_err());
        }
    }
}
