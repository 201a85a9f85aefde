//! `--api-socket` and `--event-monitor`: a path, or a descriptor that the
//! parent process left open.

use std::path::PathBuf;
use std::str::FromStr;

use super::{OptionError, Options};

/// Where the API is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiSocketArg {
    /// At this path.
    Path(PathBuf),
    /// On this listening socket.
    Fd(i32),
}

impl FromStr for ApiSocketArg {
    type Err = OptionError;

    /// Understands `path=<path>`, `fd=<number>` and a path alone.
    fn from_str(text: &str) -> Result<Self, OptionError> {
        if text.is_empty() {
            return Err(OptionError::Missing("path or fd".into()));
        }
        if !text.starts_with("path=") && !text.starts_with("fd=") {
            return Ok(ApiSocketArg::Path(text.into()));
        }
        let (path, fd) = path_or_fd(text)?;
        Ok(match (path, fd) {
            (_, Some(fd)) => ApiSocketArg::Fd(fd),
            (path, None) => ApiSocketArg::Path(path.unwrap_or_default()),
        })
    }
}

/// Where events are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventMonitorArg {
    /// To this file.
    Path(PathBuf),
    /// To this descriptor.
    Fd(i32),
}

impl FromStr for EventMonitorArg {
    type Err = OptionError;

    /// Understands `path=<path>` and `fd=<number>`.
    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (path, fd) = path_or_fd(text)?;
        Ok(match (path, fd) {
            (_, Some(fd)) => EventMonitorArg::Fd(fd),
            (path, None) => EventMonitorArg::Path(path.unwrap_or_default()),
        })
    }
}

/// Exactly one of the two.
fn path_or_fd(text: &str) -> Result<(Option<PathBuf>, Option<i32>), OptionError> {
    let options = Options::parse(text, &["path", "fd"], &[])?;
    let path = options.text("path").map(PathBuf::from);
    let fd = options.descriptor("fd")?;
    if path.is_some() == fd.is_some() {
        return Err(OptionError::Combination(
            "exactly one of path and fd must be given".into(),
        ));
    }
    Ok((path, fd))
}
