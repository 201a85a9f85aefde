//! Requests and responses, and their form on the wire.

use std::sync::Arc;

use super::{MAX_BODY, MAX_HEAD};
use crate::api::Descriptors;

/// Headers that a request may have at most.
const MAX_HEADERS: usize = 64;

/// The verbs that the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Act.
    Put,
    /// Any other verb; nothing answers to it.
    Other,
}

/// A complete request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The verb.
    pub method: Method,
    /// The path, as sent, without the query.
    pub path: String,
    /// What followed the first `?`.
    pub query: Option<String>,
    /// The body; empty if there was none.
    pub body: Vec<u8>,
    /// Whether the client wants to go on with this connection.
    pub keep_alive: bool,
    /// What came along.
    pub descriptors: Descriptors,
}

/// What the bytes received so far amount to.
#[derive(Debug)]
pub enum Parsed {
    /// Not a whole request yet.
    Partial {
        /// Whether the client waits for permission to send its body.
        wants_continue: bool,
    },
    /// A request, and how many bytes it took.
    Complete(Request, usize),
    /// No request that can be answered otherwise; the connection is of no
    /// further use.
    Refused(Response),
}

struct Head {
    request: Request,
    /// Length of the head itself.
    len: usize,
    body_len: usize,
    expects_continue: bool,
}

impl Request {
    /// Looks for a request at the start of `bytes`.
    pub fn parse(bytes: &[u8]) -> Parsed {
        let head = match parse_head(bytes) {
            Ok(Some(head)) => head,
            Ok(None) => {
                return Parsed::Partial {
                    wants_continue: false,
                };
            }
            Err(response) => return Parsed::Refused(response.closing()),
        };
        let end = head.len + head.body_len;
        match bytes.get(head.len..end) {
            Some(body) => {
                let mut request = head.request;
                request.body = body.to_vec();
                Parsed::Complete(request, end)
            }
            None => Parsed::Partial {
                wants_continue: head.expects_continue && bytes.len() == head.len,
            },
        }
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Response> {
    let bad = |why: String| Response::error(400, ["Bad Request".to_owned(), why]);
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let len = match parsed.parse(&bytes[..bytes.len().min(MAX_HEAD)]) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) => {
            return Err(bad(format!(
                "Request line and headers are longer than {MAX_HEAD} bytes"
            )));
        }
        Err(error) => return Err(bad(format!("Not an HTTP request: {error}"))),
    };
    let mut keep_alive = parsed.version == Some(1);
    let mut body_len = None;
    let mut expects_continue = false;
    for header in parsed.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        let value = value.trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = Some(value)
                .filter(|value| value.bytes().all(|digit| digit.is_ascii_digit()))
                .and_then(|value| value.parse::<usize>().ok())
                .ok_or_else(|| bad(format!("\"{value}\" is no length")))?;
            if body_len.is_some_and(|earlier| earlier != length) {
                return Err(bad("Two different lengths are given".to_owned()));
            }
            body_len = Some(length);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("identity") {
                return Err(bad(format!(
                    "Transfer encoding \"{value}\" is not supported: send a Content-Length"
                )));
            }
        } else if header.name.eq_ignore_ascii_case("connection") {
            for token in value.split(',').map(str::trim) {
                if token.eq_ignore_ascii_case("close") {
                    keep_alive = false;
                } else if token.eq_ignore_ascii_case("keep-alive") {
                    keep_alive = true;
                }
            }
        } else if header.name.eq_ignore_ascii_case("expect") {
            expects_continue = value.eq_ignore_ascii_case("100-continue");
        }
    }
    let body_len = body_len.unwrap_or(0);
    if body_len > MAX_BODY {
        return Err(Response::error(
            413,
            [
                "Payload Too Large".to_owned(),
                format!("The body has {body_len} bytes, {MAX_BODY} are allowed"),
            ],
        ));
    }
    let (path, query) = split_target(parsed.path.unwrap_or_default());
    Ok(Some(Head {
        request: Request {
            method: match parsed.method {
                Some("GET") => Method::Get,
                Some("PUT") => Method::Put,
                _ => Method::Other,
            },
            path,
            query,
            body: Vec::new(),
            keep_alive,
            descriptors: Descriptors::default(),
        },
        len,
        body_len,
        expects_continue,
    }))
}

/// Path and query of a request target, which may be a full `http://` address.
fn split_target(target: &str) -> (String, Option<String>) {
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |start| &rest[start..]),
        None => target,
    };
    match target.split_once('?') {
        Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
        None => (target.to_owned(), None),
    }
}

/// How a body is to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// JSON.
    Json,
    /// OpenMetrics text.
    OpenMetrics,
}

impl ContentType {
    fn as_str(self) -> &'static str {
        match self {
            ContentType::Json => "application/json",
            ContentType::OpenMetrics => instrumentation::encode::CONTENT_TYPE,
        }
    }
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The body. Several clients may be sent the same one.
    pub body: Option<(ContentType, Arc<Vec<u8>>)>,
    /// Whether the connection ends with it.
    pub close: bool,
}

impl Response {
    /// Done, nothing to say: 204.
    pub fn no_content() -> Self {
        Response {
            status: 204,
            body: None,
            close: false,
        }
    }

    /// Done, with an empty body: 200.
    pub fn empty() -> Self {
        Response {
            status: 200,
            body: None,
            close: false,
        }
    }

    /// Done, with a text: 200.
    pub fn text(content_type: ContentType, text: Vec<u8>) -> Self {
        Response {
            status: 200,
            body: Some((content_type, Arc::new(text))),
            close: false,
        }
    }

    /// Done, with a JSON body: 200.
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Response {
                status: 200,
                body: Some((ContentType::Json, Arc::new(body))),
                close: false,
            },
            Err(error) => Response::error(
                500,
                [
                    "Internal Server Error".to_owned(),
                    format!("The answer cannot be written as JSON: {error}"),
                ],
            ),
        }
    }

    /// An error with its messages, outermost first.
    pub fn error(status: u16, messages: impl IntoIterator<Item = String>) -> Self {
        let messages = messages.into_iter().map(serde_json::Value::String);
        Response {
            status,
            body: Some((
                ContentType::Json,
                Arc::new(
                    serde_json::Value::Array(messages.collect())
                        .to_string()
                        .into_bytes(),
                ),
            )),
            close: false,
        }
    }

    /// The same response as the last one on its connection.
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// What goes before the body. Like Cloud Hypervisor's, the status line has
    /// no reason phrase.
    pub fn head(&self) -> Vec<u8> {
        let connection = if self.close { "close" } else { "keep-alive" };
        let mut head = format!(
            "HTTP/1.1 {} \r\nServer: Cloud Hypervisor API\r\nConnection: {connection}\r\n",
            self.status
        );
        if self.status != 204 {
            let (content_type, len) = match &self.body {
                Some((content_type, body)) => (*content_type, body.len()),
                None => (ContentType::Json, 0),
            };
            head.push_str(&format!(
                "Content-Type: {}\r\nContent-Length: {len}\r\n",
                content_type.as_str()
            ));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// All bytes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.head();
        if let Some((_, body)) = &self.body {
            bytes.extend_from_slice(body);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(bytes: &[u8]) -> (Request, usize) {
        match Request::parse(bytes) {
            Parsed::Complete(request, len) => (request, len),
            other => panic!("{other:?}"),
        }
    }

    fn refused(bytes: &[u8]) -> Response {
        match Request::parse(bytes) {
            Parsed::Refused(response) => response,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_partial_until_its_last_byte() {
        let bytes = b"PUT /a HTTP/1.1\r\nHost: x\r\ncontent-LENGTH:  3\r\n\r\nabcGET";
        for end in 0..bytes.len() - 3 {
            assert!(
                matches!(Request::parse(&bytes[..end]), Parsed::Partial { .. }),
                "{end}"
            );
        }
        let (request, len) = complete(bytes);
        assert_eq!(len, bytes.len() - 3);
        assert_eq!(request.body, b"abc");
        assert_eq!(request.method, Method::Put);
        assert!(request.keep_alive);
    }

    #[test]
    fn path_and_query_are_told_apart() {
        for (target, path, query) in [
            ("/a", "/a", None),
            ("/a?b=1", "/a", Some("b=1")),
            ("http://localhost/a?b", "/a", Some("b")),
            ("http://localhost", "/", None),
            ("/a?", "/a", Some("")),
        ] {
            let (request, _) = complete(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes());
            assert_eq!(request.path, path);
            assert_eq!(request.query.as_deref(), query);
        }
    }

    #[test]
    fn only_a_client_that_waits_is_told_to_continue() {
        let head = b"PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
        assert!(matches!(
            Request::parse(head),
            Parsed::Partial {
                wants_continue: true
            }
        ));
        complete(&[&head[..], b"x"].concat());
    }

    #[test]
    fn a_connection_lasts_as_long_as_the_client_wants() {
        for (head, keep_alive) in [
            ("GET / HTTP/1.1", true),
            ("GET / HTTP/1.0", false),
            ("GET / HTTP/1.1\r\nConnection: Close", false),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive", true),
        ] {
            let (request, _) = complete(format!("{head}\r\n\r\n").as_bytes());
            assert_eq!(request.keep_alive, keep_alive, "{head}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let too_long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_HEAD));
        for bytes in [
            &b"\x00\x01\x02\x03"[..],
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            too_long.as_bytes(),
        ] {
            let response = refused(bytes);
            assert_eq!(response.status, 400);
            assert!(response.close);
        }
        let response = refused(b"PUT / HTTP/1.1\r\nContent-Length: 4194305\r\n\r\n");
        assert_eq!(response.status, 413);
    }

    #[test]
    fn responses_have_cloud_hypervisors_form() {
        assert_eq!(
            String::from_utf8(Response::no_content().to_bytes()).unwrap(),
            "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(
            String::from_utf8(Response::empty().to_bytes()).unwrap(),
            "HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
             Content-Type: application/json\r\nContent-Length: 0\r\n\r\n"
        );
        let error = Response::error(404, ["Not Found".to_owned(), "a \"b\"".to_owned()]);
        assert_eq!(
            String::from_utf8(error.closing().to_bytes()).unwrap(),
            "HTTP/1.1 404 \r\nServer: Cloud Hypervisor API\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: 23\r\n\r\n[\"Not Found\",\"a \\\"b\\\"\"]"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = Request::parse(&bytes);
        }

        #[test]
        fn no_headers_make_the_parser_panic(
            target in "[ -~]{0,40}",
            name in "[A-Za-z-]{1,20}",
            value in "\\PC{0,40}",
        ) {
            let _ = Request::parse(format!("PUT {target} HTTP/1.1\r\n{name}: {value}\r\n\r\n").as_bytes());
        }
    }
}
