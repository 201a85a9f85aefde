//! Requests to a VMM's API, by the client that `ch-remote` has, and in forms that it
//! never sends. What clients by others make of the API, `tests/unmodified-client` and
//! schemathesis show.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api_client::client::{self, Client, Method, request_bytes};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as text; empty where there is none.
    pub body: String,
}

impl From<client::Response> for Response {
    fn from(response: client::Response) -> Self {
        Self {
            status: response.status,
            headers: response.headers,
            body: response.body.unwrap_or_default(),
        }
    }
}

impl Response {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("Not JSON: {:?}", self.body))
    }

    /// The messages of an error answer, outermost first.
    pub fn errors(&self) -> Result<Vec<String>> {
        serde_json::from_str(&self.body)
            .with_context(|| format!("Not an array of messages: {:?}", self.body))
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Sends one request on a connection of its own.
pub fn request(socket: &Path, method: &str, path: &str, body: Option<&str>) -> Result<Response> {
    let verb = match method {
        "GET" => Method::Get,
        "PUT" => Method::Put,
        other => bail!("The client does not send {other}"),
    };
    let answer = Client::new(socket)
        .with_timeout(TIMEOUT)
        .request(verb, path, body.map(str::as_bytes))
        .with_context(|| format!("{method} {path}"))?;
    Ok(answer.into())
}

/// Sends a PUT and descriptors with its first byte.
pub fn request_with(
    socket: &Path,
    path: &str,
    body: &str,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Response> {
    let descriptors: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let answer = Client::new(socket)
        .with_timeout(TIMEOUT)
        .request_with(Method::Put, path, Some(body.as_bytes()), &descriptors)
        .with_context(|| format!("PUT {path}"))?;
    Ok(answer.into())
}

/// Sends a request as it is written, and takes the answer after which the server
/// says nothing more, an invitation to send a body aside.
pub fn exchange_on(socket: &Path, text: &str) -> Result<Response> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("Cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    exchange(stream, text.as_bytes())
}

/// Asks over TCP.
pub fn request_tcp(address: SocketAddr, path: &str) -> Result<Response> {
    let stream =
        TcpStream::connect(address).with_context(|| format!("Cannot connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    exchange(stream, &request_bytes(Method::Get, path, None))
}

fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Result<Response> {
    stream
        .write_all(request)
        .context("Cannot send the request")?;
    let answer = client::Response::read(&mut stream).context("No answer")?;
    Ok(answer.into())
}
