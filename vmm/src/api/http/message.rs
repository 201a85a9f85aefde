//! Requests and responses, and their form on the wire.

use std::sync::Arc;

use super::head::{Head, HeadError};
use crate::api::Descriptors;

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

impl Request {
    /// Understands the bytes of one whole request, whose head is `head`.
    pub fn parse(bytes: &[u8], head: &Head) -> Result<Self, Response> {
        let left_out = head.accept_encoding.clone().unwrap_or(head.len..head.len);
        let (Some(before), Some(after)) = (
            bytes.get(head.start..left_out.start),
            bytes.get(left_out.end..head.request_len()),
        ) else {
            return Err(bad_request("The request is not complete".to_owned()));
        };
        let text = [before, after].concat();
        let parsed = micro_http::Request::try_from(&text, None)
            .map_err(|error| bad_request(format!("Not an HTTP request: {error}")))?;
        let (path, query) = split_target(parsed.uri().get_abs_path());
        let http11 = parsed.http_version() == micro_http::Version::Http11;
        Ok(Request {
            method: match parsed.method() {
                micro_http::Method::Get => Method::Get,
                micro_http::Method::Put => Method::Put,
                _ => Method::Other,
            },
            path,
            query,
            body: parsed.body.map_or_else(Vec::new, |body| body.body),
            keep_alive: head.keep_alive.unwrap_or(http11),
            descriptors: Descriptors::default(),
        })
    }
}

fn bad_request(why: String) -> Response {
    Response::error(400, ["Bad Request".to_owned(), why]).closing()
}

/// Path and query of a request target.
fn split_target(target: &str) -> (String, Option<String>) {
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

    /// The answer to bytes that are no request.
    pub fn refusal(error: &HeadError) -> Self {
        let (status, message) = error.status();
        Response::error(status, [message.to_owned(), error.to_string()]).closing()
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
    use super::super::find_head;
    use super::*;

    fn parsed(bytes: &[u8]) -> Result<Request, Response> {
        match find_head(bytes) {
            Ok(Some(head)) => Request::parse(bytes, &head),
            Ok(None) => panic!("not complete"),
            Err(error) => Err(Response::refusal(&error)),
        }
    }

    fn complete(bytes: &[u8]) -> Request {
        parsed(bytes).unwrap()
    }

    #[test]
    fn a_head_is_partial_until_its_last_byte() {
        let bytes = b"PUT /a HTTP/1.1\r\nHost: x\r\ncontent-LENGTH:  3\r\n\r\nabcGET";
        let head = find_head(bytes).unwrap().unwrap();
        for end in 0..head.len {
            assert_eq!(find_head(&bytes[..end]), Ok(None), "{end}");
        }
        assert_eq!(head.request_len(), bytes.len() - 3);
        let request = complete(bytes);
        assert_eq!(request.body, b"abc");
        assert_eq!(request.method, Method::Put);
        assert!(request.keep_alive);
    }

    #[test]
    fn clients_may_say_which_encodings_they_take() {
        for value in ["gzip, deflate", "identity;q=0", ""] {
            let text = format!(
                "PUT /a HTTP/1.1\r\nAccept-Encoding: {value}\r\nContent-Length: 1\r\n\r\nx"
            );
            assert_eq!(complete(text.as_bytes()).body, b"x", "{value}");
        }
    }

    #[test]
    fn path_and_query_are_told_apart() {
        for (target, path, query) in [
            ("/a", "/a", None),
            ("/a?b=1", "/a", Some("b=1")),
            ("http://localhost/a?b", "/a", Some("b")),
            ("http://localhost", "", None),
            ("/a?", "/a", Some("")),
        ] {
            let request = complete(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes());
            assert_eq!(request.path, path);
            assert_eq!(request.query.as_deref(), query);
        }
    }

    #[test]
    fn a_connection_lasts_as_long_as_the_client_wants() {
        for (head, keep_alive) in [
            ("GET / HTTP/1.1", true),
            ("GET / HTTP/1.0", false),
            ("GET / HTTP/1.1\r\nConnection: Close", false),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive", true),
        ] {
            let request = complete(format!("{head}\r\n\r\n").as_bytes());
            assert_eq!(request.keep_alive, keep_alive, "{head}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for bytes in [
            &b"\x00\x01\x02\x03"[..],
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET  HTTP/1.1\r\n\r\n",
            b"get / HTTP/1.1\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
            b"hello\r\n\r\n",
        ] {
            assert_eq!(parsed(bytes).unwrap_err().status, 400);
        }
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
            if let Ok(Some(head)) = find_head(&bytes)
                && bytes.len() >= head.request_len()
            {
                let _ = Request::parse(&bytes, &head);
            }
        }

        #[test]
        fn no_headers_make_the_parser_panic(
            target in "[ -~]{0,40}",
            name in "[A-Za-z-]{1,20}",
            value in "\\PC{0,40}",
        ) {
            let text = format!("PUT {target} HTTP/1.1\r\n{name}: {value}\r\n\r\n");
            if let Ok(Some(head)) = find_head(text.as_bytes())
                && head.body_len == 0
            {
                let _ = Request::parse(text.as_bytes(), &head);
            }
        }
    }
}
