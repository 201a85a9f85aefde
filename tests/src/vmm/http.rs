//! The lab's client for HTTP/1.1, no more than the tests need. It is not the
//! product's, so that a fault of one does not hide that of the other.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub body: String,
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
    exchange(connect(socket)?, method, path, body)
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("Cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Sends a request as it is written, and takes the answer after which the server
/// says nothing more, an invitation to send a body aside.
pub fn exchange_on(socket: &Path, text: &str) -> Result<Response> {
    let mut stream = connect(socket)?;
    stream
        .write_all(text.as_bytes())
        .context("Cannot send the request")?;
    let mut stream = BufReader::new(stream);
    loop {
        let answer = read(&mut stream).context("No answer")?;
        if answer.status != 100 {
            return Ok(answer);
        }
    }
}

/// Sends a PUT and descriptors with its first byte.
pub fn request_with(
    socket: &Path,
    path: &str,
    body: &str,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Response> {
    let mut stream = connect(socket)?;
    let text = text_of("PUT", path, Some(body)).into_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(
        control.push(SendAncillaryMessage::ScmRights(descriptors)),
        "Too many descriptors"
    );
    let sent = sendmsg(
        &stream,
        &[IoSlice::new(&text)],
        &mut control,
        SendFlags::empty(),
    )?;
    stream
        .write_all(&text[sent..])
        .context("Cannot send the request")?;
    read(BufReader::new(stream)).with_context(|| format!("No answer to PUT {path}"))
}

/// The same over TCP.
pub fn request_tcp(address: SocketAddr, path: &str) -> Result<Response> {
    let stream =
        TcpStream::connect(address).with_context(|| format!("Cannot connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    exchange(stream, "GET", path, None)
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Result<Response> {
    stream
        .write_all(text_of(method, path, body).as_bytes())
        .context("Cannot send the request")?;
    read(BufReader::new(stream)).with_context(|| format!("No answer to {method} {path}"))
}

/// A request, as it is sent.
pub fn text_of(method: &str, path: &str, body: Option<&str>) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
    if let Some(body) = body {
        text.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    text.push_str("\r\n");
    text.push_str(body.unwrap_or_default());
    text
}

/// The head of an answer: everything but the body.
pub fn read_head(mut stream: impl BufRead) -> Result<(Response, usize)> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|code| code.trim().parse().ok())
        .with_context(|| format!("Not a status line: {line:?}"))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let response = Response {
        status,
        headers,
        body: String::new(),
    };
    let length = response
        .header("content-length")
        .map_or(Ok(0), str::parse)
        .context("Content-Length is not a number")?;
    Ok((response, length))
}

fn read(mut stream: impl BufRead) -> Result<Response> {
    let (mut response, length) = read_head(&mut stream)?;
    let mut body = vec![0; length];
    stream
        .read_exact(&mut body)
        .context("The body is shorter than announced")?;
    response.body = String::from_utf8(body).context("The body is not UTF-8")?;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_ends_where_its_length_says() {
        let raw = b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}more";
        let response = read(raw.as_slice()).unwrap();
        assert_eq!((response.status, response.body.as_str()), (200, "{}"));
    }

    #[test]
    fn answer_without_body_is_complete() {
        let response = read(b"HTTP/1.1 204 \r\nServer: x\r\n\r\n".as_slice()).unwrap();
        assert_eq!(
            (response.status, response.header("server")),
            (204, Some("x"))
        );
    }
}
