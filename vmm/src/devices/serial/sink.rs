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

/// Opens the sink; `None` for [`ConsoleSink::Off`]. The output is not buffered,
/// so that what the guest printed last is there when it crashes.
pub fn open_sink(sink: &ConsoleSink) -> io::Result<Option<Box<dyn Write + Send>>> {
    Ok(match sink {
        ConsoleSink::Off => None,
        ConsoleSink::Null => Some(Box::new(io::sink())),
        ConsoleSink::Tty => {
            let stdout = io::stdout().as_fd().try_clone_to_owned()?;
            Some(Box::new(File::from(stdout)))
        }
        ConsoleSink::File(path) => Some(Box::new(File::create(path)?)),
    })
}
