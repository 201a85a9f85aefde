//! As much of HTTP/1.1 as a scrape takes: one GET, one answer, end.

use std::sync::Arc;
use std::time::Duration;

/// Bytes of a request's head that are looked at.
pub const MAX_HEAD: usize = 16 << 10;
/// Header lines of a request.
const MAX_HEADERS: usize = 64;

/// A GET.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Its path, without query.
    pub path: String,
    /// Whether the answer may be compressed by gzip.
    pub gzip: bool,
    /// How long the client waits for its answer, as Prometheus says.
    pub patience: Option<Duration>,
}

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A beginning.
    Partial,
    /// All that is needed.
    Complete(Request),
    /// No request for this server; the answer says why.
    Refused(Answer),
}

/// Understands a request's head. What comes after it is of no interest.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Err(httparse::Error::TooManyHeaders) => refused("431 Request Header Fields Too Large"),
        Err(_) => refused("400 Bad Request"),
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD => {
            refused("431 Request Header Fields Too Large")
        }
        Ok(httparse::Status::Partial) => Parsed::Partial,
        Ok(httparse::Status::Complete(_)) if request.method != Some("GET") => {
            Parsed::Refused(Answer {
                allow: Some("GET"),
                ..Answer::text("405 Method Not Allowed", "Only GET is answered\n")
            })
        }
        Ok(httparse::Status::Complete(_)) => {
            let target = request.path.unwrap_or_default();
            let path = target.split('?').next().unwrap_or_default().to_string();
            let value_of = |name: &str| {
                let mut headers = request.headers.iter();
                let found = headers.find(|header| header.name.eq_ignore_ascii_case(name))?;
                std::str::from_utf8(found.value).ok()
            };
            let gzip = value_of("accept-encoding").is_some_and(accepts_gzip);
            let patience = value_of("x-prometheus-scrape-timeout-seconds")
                .and_then(|text| text.trim().parse().ok())
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            Parsed::Complete(Request {
                path,
                gzip,
                patience,
            })
        }
    }
}

fn refused(status: &'static str) -> Parsed {
    Parsed::Refused(Answer::text(status, "Not a valid HTTP request\n"))
}

/// Whether the value of an Accept-Encoding header (RFC 9110, 12.5.3) admits
/// gzip. A weight of zero excludes it.
fn accepts_gzip(value: &str) -> bool {
    let weight_of = |name: &str| {
        value.split(',').find_map(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            if !parts.next()?.eq_ignore_ascii_case(name) {
                return None;
            }
            let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            Some(weight.map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0)))
        })
    };
    weight_of("gzip")
        .or_else(|| weight_of("*"))
        .is_some_and(|weight| weight > 0.0)
}

/// An answer, which ends the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Code and reason.
    pub status: &'static str,
    /// What the body is.
    pub content_type: &'static str,
    /// How the body is compressed.
    pub encoding: Option<&'static str>,
    /// The method that is served, where another one was used.
    pub allow: Option<&'static str>,
    /// The body; clients of one scrape share it.
    pub body: Arc<Vec<u8>>,
}

impl Answer {
    /// A line of text.
    pub fn text(status: &'static str, text: &str) -> Self {
        Answer {
            status,
            content_type: "text/plain; charset=utf-8",
            encoding: None,
            allow: None,
            body: Arc::new(text.as_bytes().to_vec()),
        }
    }

    /// The head, as bytes.
    pub fn head(&self) -> Vec<u8> {
        let mut head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nVary: Accept-Encoding\r\n",
            self.status,
            self.content_type,
            self.body.len()
        );
        if let Some(encoding) = self.encoding {
            head.push_str(&format!("Content-Encoding: {encoding}\r\n"));
        }
        if let Some(allow) = self.allow {
            head.push_str(&format!("Allow: {allow}\r\n"));
        }
        head.push_str("Connection: close\r\n\r\n");
        head.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_only_where_it_is_asked_for() {
        for value in ["gzip", "GZIP", "deflate, gzip;q=0.5", "*", "br,*;q=0.1"] {
            assert!(accepts_gzip(value), "{value}");
        }
        for value in [
            "",
            "identity",
            "gzip;q=0",
            "*, gzip; q=0",
            "gzip;q=x",
            "xgzip",
        ] {
            assert!(!accepts_gzip(value), "{value}");
        }
    }

    #[test]
    fn what_prometheus_says_of_its_patience_is_understood() {
        let patience = |value: &str| {
            let head = format!(
                "GET /metrics HTTP/1.1\r\nX-Prometheus-Scrape-Timeout-Seconds: {value}\r\n\r\n"
            );
            match parse(head.as_bytes()) {
                Parsed::Complete(request) => request.patience,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(patience("1.5"), Some(Duration::from_millis(1500)));
        for value in ["", "-1", "NaN", "inf", "1e300", "2e19", "x"] {
            assert_eq!(patience(value), None, "{value}");
        }
    }

    #[test]
    fn a_head_that_never_ends_is_refused() {
        let mut bytes = b"GET / HTTP/1.1\r\n".to_vec();
        while bytes.len() < MAX_HEAD {
            assert_eq!(parse(&bytes), Parsed::Partial);
            bytes.extend_from_slice(&[b'a'; 512]);
        }
        assert!(matches!(parse(&bytes), Parsed::Refused(_)));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
