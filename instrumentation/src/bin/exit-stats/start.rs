//! How the program starts and ends with Rust's runtime.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use rustix::io::Errno;

pub use rustix::stdio::{stderr, stdout};

/// Ends with the status that `run` makes of the command line.
pub fn with_arguments(run: fn(&[&[u8]]) -> u8) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let bytes: Vec<&[u8]> = arguments.iter().map(|text| text.as_bytes()).collect();
    ExitCode::from(run(&bytes))
}

/// What an error number means.
pub fn describe(error: Errno) -> String {
    std::io::Error::from(error).to_string()
}
