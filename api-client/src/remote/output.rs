//! What the user gets to see.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind, Write};

use crate::client::{ClientError, Response};

/// A failure as it is printed.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// In one line.
    Line(String),
    /// As Cloud Hypervisor prints what its server says.
    Chain(Vec<String>),
    /// Not at all: the reader of the output has seen enough.
    Silent,
}

impl Failure {
    /// One line from an error and its sources.
    pub fn from_error(error: &dyn Error) -> Self {
        let mut line = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            line.push_str(": ");
            line.push_str(&error.to_string());
            source = error.source();
        }
        Failure::Line(line)
    }

    /// What the server says, with Cloud Hypervisor's two lines before it.
    pub fn from_response(response: &Response) -> Self {
        let mut chain = vec![
            "http client error".to_owned(),
            format!("Server responded with {}", response.status_name()),
        ];
        chain.extend(response.messages());
        Failure::Chain(chain)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Failure::from_error(&error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Failure::Silent,
            _ => Failure::Line(format!("Cannot write the output: {error}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Line(line) => writeln!(f, "Error: {line}"),
            Failure::Chain(chain) => {
                writeln!(
                    f,
                    "Error: ch-remote exited with the following chain of errors:"
                )?;
                for (index, message) in chain.iter().enumerate() {
                    writeln!(f, "  {index}: {message}")?;
                }
                Ok(())
            }
            Failure::Silent => Ok(()),
        }
    }
}

/// Writes to standard output, at once and all of it.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
