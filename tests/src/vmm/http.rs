//! A client for HTTP/1.1 on a Unix socket, no more than the tests need.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
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
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("Cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
    if let Some(body) = body {
        head.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    head.push_str("\r\n");
    head.push_str(body.unwrap_or_default());
    stream
        .write_all(head.as_bytes())
        .context("Cannot send the request")?;
    read(BufReader::new(stream)).with_context(|| format!("No answer to {method} {path}"))
}

fn read(mut stream: impl BufRead) -> Result<Response> {
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
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .map_or(Ok(0), |(_, value)| value.parse::<usize>())
        .context("Content-Length is no number")?;
    let mut body = vec![0; length];
    stream
        .read_exact(&mut body)
        .context("The body is shorter than announced")?;
    let body = String::from_utf8(body).context("The body is not UTF-8")?;
    Ok(Response {
        status,
        headers,
        body,
    })
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
