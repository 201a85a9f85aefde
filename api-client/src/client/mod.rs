//! The API over its Unix socket: one request, one response, and a deadline for
//! both.

mod request;
mod response;
mod stream;

use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

pub use request::request_bytes;
pub use response::{Incoming, Response, ResponseError, ResponseHead};
use stream::DeadlineStream;
pub use stream::connect_now;

/// The verbs of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Act.
    Put,
}

impl Method {
    fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
        }
    }

    /// How long an answer may take unless told otherwise. Reading never waits for
    /// anything; a boot or a shutdown may have a lot to do.
    pub fn patience(self) -> Duration {
        match self {
            Method::Get => Duration::from_secs(10),
            Method::Put => Duration::from_secs(600),
        }
    }
}

/// Why there is no response.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("Cannot connect to the API socket {}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The request could not be sent.
    #[error("Cannot send the request to {}", .path.display())]
    Send {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The response did not come, or is none.
    #[error("No valid answer from {}", .path.display())]
    Receive {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: ResponseError,
    },
}

impl ClientError {
    /// Whether there is a VMM that does not answer in time.
    pub fn is_timeout(&self) -> bool {
        let source = match self {
            ClientError::Connect { source, .. } | ClientError::Send { source, .. } => source,
            ClientError::Receive {
                source: ResponseError::Io(source),
                ..
            } => source,
            ClientError::Receive { .. } => return false,
        };
        source.kind() == io::ErrorKind::TimedOut
    }
}

/// A VMM's API.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    timeout: Option<Duration>,
    /// A VMM that has not acted for so long is asked whether it still answers.
    probe: Duration,
}

/// The VMM answers this at once, whatever else it is busy with.
const PING: &str = "/api/v1/vmm.ping";

/// Whether a VMM answers within `patience`.
fn answers(path: &Path, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    DeadlineStream::connect(path, deadline).is_ok_and(|mut stream| {
        let request = request_bytes(Method::Get, PING, None);
        stream.send(&request, &[]).is_ok() && Response::read(&mut stream).is_ok()
    })
}

impl Client {
    /// A client for the socket at `path`. Connects for every request, so that
    /// a VMM that restarts is simply found again.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Client {
            path: path.into(),
            timeout: None,
            probe: Method::Get.patience(),
        }
    }

    /// The same with one timeout for every request.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Client {
            timeout: Some(timeout),
            ..self
        }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks for a resource, with as much patience as the verb deserves.
    pub fn request(
        &self,
        method: Method,
        target: &str,
        body: Option<&[u8]>,
    ) -> Result<Response, ClientError> {
        self.request_with(method, target, body, &[])
    }

    /// The same with descriptors of this process that the server is to have.
    pub fn request_with(
        &self,
        method: Method,
        target: &str,
        body: Option<&[u8]>,
        descriptors: &[RawFd],
    ) -> Result<Response, ClientError> {
        let patience = self.timeout.unwrap_or(method.patience());
        self.exchange(method, target, body, descriptors, patience)
    }

    /// Asks for a resource; everything together may take `patience`.
    pub fn request_within(
        &self,
        method: Method,
        target: &str,
        body: Option<&[u8]>,
        patience: Duration,
    ) -> Result<Response, ClientError> {
        self.exchange(method, target, body, &[], patience)
    }

    fn exchange(
        &self,
        method: Method,
        target: &str,
        body: Option<&[u8]>,
        descriptors: &[RawFd],
        patience: Duration,
    ) -> Result<Response, ClientError> {
        let path = || self.path.clone();
        let deadline = Instant::now() + patience;
        let mut stream = DeadlineStream::connect(&self.path, deadline).map_err(|source| {
            ClientError::Connect {
                path: path(),
                source,
            }
        })?;
        let request = request_bytes(method, target, body);
        let sent = stream.send(&request, descriptors);
        if method == Method::Put && self.timeout.is_none() {
            let (path, probe) = (self.path.clone(), self.probe);
            stream.check_each(probe, move || answers(&path, probe));
        }
        let received = Response::read(&mut stream);
        match (sent, received) {
            // A server that refuses a body may answer before it has read it.
            (_, Ok(response)) => Ok(response),
            (Err(source), Err(_)) => Err(ClientError::Send {
                path: path(),
                source,
            }),
            (Ok(()), Err(source)) => Err(ClientError::Receive {
                path: path(),
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
