//! Where a console's output goes on the host.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// A console's other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleSink {
    /// There is no such device.
    Off,
    /// The device is there, its output is dropped.
    Null,
    /// The terminal that the program was started on.
    Tty,
    /// A file, made anew.
    File(PathBuf),
}

/// Opens the sink; `None` for [`ConsoleSink::Off`]. A file is made anew when the
/// machine boots for the `first` time, and goes on after that, so that what led
/// to a reboot can be read. The output is not buffered, so that what the guest
/// printed last is there when it crashes.
pub fn open_sink(sink: &ConsoleSink, first: bool) -> io::Result<Option<Box<dyn Write + Send>>> {
    Ok(match sink {
        ConsoleSink::Off => None,
        ConsoleSink::Null => Some(Box::new(io::sink())),
        ConsoleSink::Tty => {
            let stdout = io::stdout().as_fd().try_clone_to_owned()?;
            Some(Box::new(File::from(stdout)))
        }
        ConsoleSink::File(path) => {
            if first {
                File::create(path)?;
            }
            Some(Box::new(File::options().append(true).open(path)?))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_anew_once_and_goes_on_after_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        std::fs::write(&path, "old").unwrap();
        let sink = ConsoleSink::File(path.clone());
        for (first, text) in [(true, "one "), (false, "two")] {
            let mut output = open_sink(&sink, first).unwrap().unwrap();
            output.write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one two");
    }

    #[test]
    fn a_file_that_cannot_be_made_is_an_error() {
        assert!(open_sink(&ConsoleSink::File("/no/such/dir/f".into()), true).is_err());
        assert!(open_sink(&ConsoleSink::Off, true).unwrap().is_none());
    }
}
