//! What stands between a client's bytes and the parser: it decides where a
//! request ends, and refuses what the parser would take in another sense than
//! the client or a server in between, before anything is carried out.

use std::ops::Range;

use super::{MAX_BODY, MAX_HEAD};

/// Header lines that a request may have at most.
const MAX_HEADERS: usize = 64;

const END_OF_LINE: &[u8] = b"\r\n";

/// Why the bytes are no request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("Request line and headers are longer than {MAX_HEAD} bytes")]
    TooLong,
    #[error("There are more than {MAX_HEADERS} headers")]
    TooManyHeaders,
    #[error("A line of the head contains byte {0:#04x}, or does not end with CR LF")]
    ControlByte(u8),
    #[error("\"{0}\" is not a header")]
    NotAHeader(String),
    #[error("Content-Length \"{0}\" is not a number")]
    Length(String),
    #[error("Content-Length is given twice")]
    TwoLengths,
    #[error("Transfer encoding \"{0}\" is not supported: send a Content-Length")]
    TransferEncoding(String),
    #[error("Accept-Encoding is given twice")]
    TwoEncodings,
    #[error("The body has {0} bytes, {MAX_BODY} are allowed")]
    BodyTooLong(usize),
}

impl HeadError {
    /// Status of the answer, and its outer message.
    pub fn status(&self) -> (u16, &'static str) {
        match self {
            HeadError::BodyTooLong(_) => (413, "Payload Too Large"),
            HeadError::TooLong
            | HeadError::TooManyHeaders
            | HeadError::ControlByte(_)
            | HeadError::NotAHeader(_)
            | HeadError::Length(_)
            | HeadError::TwoLengths
            | HeadError::TwoEncodings
            | HeadError::TransferEncoding(_) => (400, "Bad Request"),
        }
    }
}

/// What the head of a request says of the connection. The rest of it is the
/// parser's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Empty lines before the request, which count for nothing.
    pub start: usize,
    /// Bytes up to the body, with those lines.
    pub len: usize,
    /// Bytes of the body.
    pub body_len: usize,
    /// Whether the client said that it wants to go on after the answer.
    pub keep_alive: Option<bool>,
    /// Whether the client waits for permission to send its body.
    pub expects_continue: bool,
    /// Where it says which encodings it takes. Answers have none, and the
    /// parser refuses an empty list.
    pub accept_encoding: Option<Range<usize>>,
}

impl Head {
    /// Bytes of the whole request.
    pub fn request_len(&self) -> usize {
        self.len + self.body_len
    }
}

/// Looks for a head at the start of `bytes`; `None` if it is not complete.
pub fn find_head(bytes: &[u8]) -> Result<Option<Head>, HeadError> {
    let mut start = 0;
    while bytes[start..].starts_with(END_OF_LINE) && start < MAX_HEAD {
        start += END_OF_LINE.len();
    }
    let window = &bytes[..bytes.len().min(MAX_HEAD)];
    let mut head = Head {
        start,
        len: 0,
        body_len: 0,
        keep_alive: None,
        expects_continue: false,
        accept_encoding: None,
    };
    let mut length = None;
    let mut at = start;
    for number in 0..=MAX_HEADERS + 1 {
        let Some(line) = line(&window[at.min(window.len())..])? else {
            if bytes.len() >= MAX_HEAD {
                return Err(HeadError::TooLong);
            }
            return Ok(None);
        };
        let from = at;
        at += line.len() + END_OF_LINE.len();
        if line.is_empty() {
            head.len = at;
            head.body_len = length.unwrap_or(0);
            if head.body_len > MAX_BODY {
                return Err(HeadError::BodyTooLong(head.body_len));
            }
            return Ok(Some(head));
        }
        // The request line is the parser's alone.
        if number > 0 {
            judge(line, from..at, &mut head, &mut length)?;
        }
    }
    Err(HeadError::TooManyHeaders)
}

/// The first line, without its end; `None` if that is not there.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, HeadError> {
    let Some(end) = bytes
        .iter()
        .position(|&byte| (byte < b' ' && byte != b'\t') || byte == 0x7f)
    else {
        return Ok(None);
    };
    match bytes[end..] {
        [b'\r', b'\n', ..] => Ok(Some(&bytes[..end])),
        [b'\r'] => Ok(None),
        [byte, ..] => Err(HeadError::ControlByte(byte)),
        [] => Ok(None),
    }
}

/// Takes from a header line, which is at `at`, what concerns the connection.
fn judge(
    line: &[u8],
    at: Range<usize>,
    head: &mut Head,
    length: &mut Option<usize>,
) -> Result<(), HeadError> {
    let line = String::from_utf8_lossy(line);
    let Some((name, value)) = line.split_once(':').filter(|(name, _)| is_token(name)) else {
        return Err(HeadError::NotAHeader(line.into_owned()));
    };
    let value = value.trim();
    if name.eq_ignore_ascii_case("content-length") {
        let number = Some(value)
            .filter(|value| value.bytes().all(|digit| digit.is_ascii_digit()))
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| HeadError::Length(value.to_owned()))?;
        if length.replace(number).is_some() {
            return Err(HeadError::TwoLengths);
        }
    } else if name.eq_ignore_ascii_case("transfer-encoding") {
        if !value.eq_ignore_ascii_case("identity") {
            return Err(HeadError::TransferEncoding(value.to_owned()));
        }
    } else if name.eq_ignore_ascii_case("connection") {
        for token in value.split(',').map(str::trim) {
            if token.eq_ignore_ascii_case("close") {
                head.keep_alive = Some(false);
            } else if token.eq_ignore_ascii_case("keep-alive") {
                head.keep_alive = Some(true);
            }
        }
    } else if name.eq_ignore_ascii_case("expect") {
        head.expects_continue = value.eq_ignore_ascii_case("100-continue");
    } else if name.eq_ignore_ascii_case("accept-encoding")
        && head.accept_encoding.replace(at).is_some()
    {
        return Err(HeadError::TwoEncodings);
    }
    Ok(())
}

/// A name without blanks: with one, it is another header to some.
fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> HeadError {
        find_head(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_head_that_never_ends_is_refused_at_its_limit() {
        let mut bytes = b"GET / HTTP/1.1\r\nX: ".to_vec();
        bytes.resize(MAX_HEAD - 1, b'a');
        assert_eq!(find_head(&bytes), Ok(None));
        bytes.push(b'a');
        assert_eq!(find_head(&bytes), Err(HeadError::TooLong));
        assert_eq!(refused(&"\r\n".repeat(MAX_HEAD)), HeadError::TooLong);
    }

    #[test]
    fn two_hundred_thousand_headers_are_too_many() {
        let head = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert!(find_head(head(MAX_HEADERS).as_bytes()).unwrap().is_some());
        assert_eq!(refused(&head(MAX_HEADERS + 1)), HeadError::TooManyHeaders);
        assert_eq!(refused(&head(200_000)), HeadError::TooManyHeaders);
    }

    #[test]
    fn a_length_is_one_number_without_a_sign() {
        let with = |headers: &str| format!("PUT / HTTP/1.1\r\n{headers}\r\n\r\n");
        for value in ["+1", "-1", "", "1 2", "0x1", "1,1", "99999999999999999999"] {
            let error = refused(&with(&format!("Content-Length: {value}")));
            assert_eq!(error, HeadError::Length(value.into()));
        }
        for second in ["Content-Length: 1", "content-LENGTH: 2"] {
            let error = refused(&with(&format!("Content-Length: 1\r\n{second}")));
            assert_eq!(error, HeadError::TwoLengths);
        }
        let error = refused(&with(&format!("Content-Length: {}", MAX_BODY + 1)));
        assert_eq!(error.status().0, 413);
    }

    #[test]
    fn a_body_in_chunks_is_refused() {
        for value in ["chunked", "Chunked", "identity, chunked", "gzip", ""] {
            let text = format!("PUT / HTTP/1.1\r\nTransfer-Encoding: {value}\r\n\r\n0\r\n\r\n");
            assert_eq!(refused(&text), HeadError::TransferEncoding(value.into()));
        }
    }

    #[test]
    fn a_header_that_some_read_otherwise_is_refused() {
        for line in [
            "Content-Length : 1",
            " Content-Length: 1",
            "\tfolded",
            ": no name",
            "no colon",
        ] {
            let text = format!("PUT / HTTP/1.1\r\n{line}\r\n\r\n");
            assert_eq!(refused(&text), HeadError::NotAHeader(line.into()));
        }
        for text in [
            "GET / HTTP/1.1\n\n",
            "GET / HTTP/1.1\rX: y\r\n\r\n",
            "\x16\x03",
        ] {
            assert!(
                matches!(refused(text), HeadError::ControlByte(_)),
                "{text:?}"
            );
        }
    }

    #[test]
    fn empty_lines_before_a_request_count_for_nothing() {
        let head = find_head(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!((head.start, head.len), (4, 22));
    }
}
