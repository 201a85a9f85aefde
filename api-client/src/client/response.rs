//! Responses, from bytes.

use std::io::{self, ErrorKind, Read};

use thiserror::Error;

const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 64;
/// No answer of the API comes near; a server that sends more is none of ours.
const MAX_BODY: usize = 256 << 20;
const CHUNK: usize = 16 << 10;

/// Why bytes are no response.
#[derive(Debug, Error)]
pub enum ResponseError {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It ended too early.
    #[error("The connection ended before the answer was complete")]
    Incomplete,
    /// The head is not HTTP.
    #[error("Not an HTTP response: {0}")]
    Head(#[from] httparse::Error),
    /// The head or the body is absurdly long.
    #[error("The answer is too long")]
    TooLong,
    /// The length of the body is not a length.
    #[error("\"{0}\" is not a length")]
    Length(String),
    /// The body comes in a form that the API does not use.
    #[error("The body is encoded as \"{0}\"")]
    Encoding(String),
    /// The body is not text.
    #[error("The answer is not UTF-8")]
    NotText,
}

/// A response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Header lines in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body; `None` if the response cannot have one.
    pub body: Option<String>,
}

/// What goes before the body of a response.
#[derive(Debug)]
pub struct ResponseHead {
    /// The status.
    pub status: u16,
    /// Header lines in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Bytes of the head.
    pub len: usize,
    /// Bytes of the body; `None` if it goes to the end of the connection.
    pub body_len: Option<usize>,
}

impl Response {
    /// Whether the request succeeded.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The status in words, as Cloud Hypervisor's client names it.
    pub fn status_name(&self) -> &'static str {
        match self.status {
            100 => "Continue",
            200 => "OK",
            204 => "NoContent",
            400 => "BadRequest",
            401 => "Unauthorized",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            409 => "Conflict",
            413 => "PayloadTooLarge",
            429 => "TooManyRequests",
            500 => "InternalServerError",
            501 => "NotImplemented",
            503 => "ServiceUnavailable",
            _ => "Unknown",
        }
    }

    /// The messages of an error, outermost first. A body in another form than
    /// the API's is one message.
    pub fn messages(&self) -> Vec<String> {
        let body = self.body.as_deref().unwrap_or_default();
        match serde_json::from_str::<Vec<String>>(body) {
            Ok(messages) => messages,
            Err(_) if body.trim().is_empty() => Vec::new(),
            Err(_) => vec![body.trim().to_owned()],
        }
    }

    /// Reads one response from a stream that blocks, and no byte more than it
    /// has to.
    pub fn read(stream: &mut impl Read) -> Result<Self, ResponseError> {
        let mut incoming = Incoming::new(MAX_BODY);
        let mut buffer = vec![0; CHUNK];
        loop {
            let more = match incoming.read_from(stream, &mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                outcome => outcome?,
            };
            if let Some(response) = incoming.response(!more)? {
                return Ok(response);
            }
        }
    }
}

/// A response that arrives in pieces.
#[derive(Debug)]
pub struct Incoming {
    /// What has arrived; without the head once that is known.
    bytes: Vec<u8>,
    head: Option<ResponseHead>,
    max_body: usize,
}

impl Incoming {
    /// Nothing yet. A body of more than `max_body` bytes is refused.
    pub fn new(max_body: usize) -> Self {
        Incoming {
            bytes: Vec::new(),
            head: None,
            max_body,
        }
    }

    /// Reads once, by way of `buffer`; false at the end of the stream.
    pub fn read_from(&mut self, stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
        let count = stream.read(buffer)?;
        self.bytes.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }

    /// The response, once it is complete. `ended` says that no more bytes come.
    pub fn response(&mut self, ended: bool) -> Result<Option<Response>, ResponseError> {
        while self.head.is_none() {
            match ResponseHead::parse(&self.bytes)? {
                Some(head) => {
                    self.bytes.drain(..head.len);
                    // An interim answer is not the answer yet.
                    self.head = Some(head).filter(|head| head.status >= 200);
                }
                None if ended => return Err(ResponseError::Incomplete),
                None if self.bytes.len() > MAX_HEAD => return Err(ResponseError::TooLong),
                None => return Ok(None),
            }
        }
        let Some(head) = &mut self.head else {
            return Ok(None);
        };
        let status = head.status;
        if status == 204 || status == 304 {
            return Ok(Some(Response {
                status,
                headers: std::mem::take(&mut head.headers),
                body: None,
            }));
        }
        match head.body_len {
            Some(len) if len > self.max_body => return Err(ResponseError::TooLong),
            _ if self.bytes.len() > self.max_body.saturating_add(CHUNK.max(MAX_HEAD)) => {
                return Err(ResponseError::TooLong);
            }
            Some(len) if self.bytes.len() >= len => self.bytes.truncate(len),
            Some(_) if ended => return Err(ResponseError::Incomplete),
            None if ended => {}
            _ => return Ok(None),
        }
        let body = String::from_utf8(std::mem::take(&mut self.bytes))
            .map_err(|_| ResponseError::NotText)?;
        Ok(Some(Response {
            status,
            headers: std::mem::take(&mut head.headers),
            body: Some(body),
        }))
    }
}

impl ResponseHead {
    /// The head at the beginning of `bytes`; nothing before it is complete.
    ///
    /// # Errors
    /// The bytes are no response, or one whose body the API does not use.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, ResponseError> {
        let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut lines);
        let httparse::Status::Complete(len) = response.parse(bytes)? else {
            return Ok(None);
        };
        let mut head = ResponseHead {
            status: response.code.unwrap_or_default(),
            headers: Vec::new(),
            len,
            body_len: None,
        };
        for line in response.headers.iter() {
            let name = line.name.to_ascii_lowercase();
            let value = String::from_utf8_lossy(line.value).trim().to_owned();
            if name == "content-length" {
                let length = Some(&value)
                    .filter(|value| value.bytes().all(|digit| digit.is_ascii_digit()))
                    .and_then(|value| value.parse().ok())
                    .ok_or_else(|| ResponseError::Length(value.clone()))?;
                head.body_len = Some(length);
            } else if name == "transfer-encoding" && !value.eq_ignore_ascii_case("identity") {
                return Err(ResponseError::Encoding(value));
            }
            head.headers.push((name, value));
        }
        Ok(Some(head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of a given size, then ends.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.1.min(self.0.len()).min(buffer.len());
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    fn read(bytes: &[u8]) -> Result<Response, ResponseError> {
        Response::read(&mut Pieces(bytes, usize::MAX))
    }

    #[test]
    fn text_survives_any_cut() {
        let bytes = "HTTP/1.1 200 \r\ncontent-LENGTH: 9\r\n\r\nä€𝄞".as_bytes();
        for size in 1..bytes.len() {
            let response = Response::read(&mut Pieces(bytes, size)).unwrap();
            assert_eq!(response.body.as_deref(), Some("ä€𝄞"));
            let length = ("content-length".to_owned(), "9".to_owned());
            assert_eq!(response.headers, [length]);
        }
    }

    #[test]
    fn bodies_are_as_long_as_they_are_said_to_be() {
        let body = |bytes: &[u8]| read(bytes).unwrap().body;
        assert_eq!(body(b"HTTP/1.1 204 \r\n\r\nmore"), None);
        assert_eq!(
            body(b"HTTP/1.1 200 OK\r\nContent-Length:0\r\n\r\n").as_deref(),
            Some("")
        );
        assert_eq!(
            body(b"HTTP/1.0 200 OK\r\n\r\nto the end").as_deref(),
            Some("to the end")
        );
        assert_eq!(
            body(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!")
                .as_deref(),
            Some("ok")
        );
    }

    #[test]
    fn what_is_no_response_is_an_error() {
        assert!(matches!(read(b""), Err(ResponseError::Incomplete)));
        assert!(matches!(read(b"SSH-2.0\r\n"), Err(ResponseError::Head(_))));
        assert!(matches!(
            read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"),
            Err(ResponseError::Incomplete)
        ));
        assert!(matches!(
            read(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"),
            Err(ResponseError::Length(_))
        ));
        assert!(matches!(
            read(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
            Err(ResponseError::TooLong)
        ));
        assert!(matches!(
            read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Err(ResponseError::Encoding(_))
        ));
        assert!(matches!(
            read(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff"),
            Err(ResponseError::NotText)
        ));
    }

    #[test]
    fn errors_are_lists_of_messages_or_one_message() {
        let response = |body: &str| Response {
            status: 500,
            body: Some(body.into()),
            ..Response::default()
        };
        assert_eq!(response("[\"a\",\"b\"]").messages(), ["a", "b"]);
        assert_eq!(response("oops\n").messages(), ["oops"]);
        assert!(response(" ").messages().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }

        #[test]
        fn no_head_makes_the_reader_panic(head in "HTTP/1.1 [0-9]{3} \r\n[A-Za-z-]{1,20}: \\PC{0,20}\r\n\r\n\\PC*") {
            let _ = read(head.as_bytes());
        }
    }
}
