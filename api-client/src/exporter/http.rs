//! As much of HTTP/1.1 as a scrape takes: one GET, one answer, end.

use std::io::{Read, Write};
use std::net::TcpStream;

/// Longest request that is looked at.
const MOST_BYTES: usize = 16 << 10;

/// Why there is no request to answer.
#[derive(Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Another verb than GET.
    Method,
    /// Not HTTP, or too long.
    Malformed,
    /// The peer left or fell silent.
    Gone,
}

/// Reads a request and returns its path, without query.
pub fn request(mut stream: &TcpStream) -> Result<String, RequestError> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return Err(RequestError::Gone),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&bytes) {
            Err(_) => return Err(RequestError::Malformed),
            Ok(httparse::Status::Partial) if bytes.len() > MOST_BYTES => {
                return Err(RequestError::Malformed);
            }
            Ok(httparse::Status::Partial) => {}
            Ok(httparse::Status::Complete(_)) if request.method != Some("GET") => {
                return Err(RequestError::Method);
            }
            Ok(httparse::Status::Complete(_)) => {
                let target = request.path.unwrap_or_default();
                let path = target.split('?').next().unwrap_or_default();
                return Ok(path.to_string());
            }
        }
    }
}

/// Answers and ends the connection. A peer that is gone by now is not told.
pub fn respond(mut stream: &TcpStream, status: &str, content_type: &str, body: &str) {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body.as_bytes()));
}

/// Answers in words.
pub fn refuse(stream: &TcpStream, status: &str, why: &str) {
    respond(stream, status, "text/plain; charset=utf-8", why);
}
