//! Requests, as bytes.

use super::Method;

/// A request as it is sent, with a body of JSON if there is one.
#[must_use]
pub fn request_bytes(method: Method, target: &str, body: Option<&[u8]>) -> Vec<u8> {
    let mut request = format!(
        "{} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n",
        method.as_str()
    );
    if let Some(body) = body {
        request.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    request.push_str("\r\n");
    [request.as_bytes(), body.unwrap_or_default()].concat()
}
