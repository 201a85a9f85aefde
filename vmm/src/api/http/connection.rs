//! One client's connection.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::message::{Request, Response};
use super::{Head, MAX_BODY, MAX_DESCRIPTORS, MAX_HEAD, find_head};
use crate::api::descriptors::{Budget, Received};

/// Bytes read from the socket at a time.
const CHUNK: usize = 16 << 10;
/// Bytes kept unread at most: a largest request, and what a client sent ahead.
const MAX_INPUT: usize = MAX_HEAD + MAX_BODY;

/// How long a client may take to send a request once it has begun, and to take
/// any of an answer.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a connection wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// To be polled again; see [`Connection::wants_read`] and
    /// [`Connection::wants_write`].
    Idle,
    /// This request to be answered with [`Connection::respond`]. Until then it
    /// reads nothing more.
    Request(Request),
    /// To be closed.
    Done,
}

/// A connection over a stream that does not block.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    /// The head that the input begins with, once that is complete.
    head: Option<Head>,
    /// What came with the input.
    descriptors: Received,
    /// Since when the connection waits for what it waits for: the rest of a
    /// request, the client to take bytes, or the next request.
    waiting_since: Instant,
    /// What is to be sent; no part is empty.
    output: VecDeque<Arc<Vec<u8>>>,
    /// How much of the first part is sent.
    sent: usize,
    /// A request is out for an answer. Holds whether the client wants to go on
    /// after it.
    answering: Option<bool>,
    continued: bool,
    /// The client sends no more.
    end_of_input: bool,
    /// Nothing more is to be read; the connection ends once all is sent.
    closing: bool,
}

impl Connection {
    /// A connection that has just been accepted.
    pub fn new(stream: UnixStream, budget: Budget) -> Self {
        Connection {
            stream,
            input: Vec::new(),
            head: None,
            descriptors: Received::new(budget),
            waiting_since: Instant::now(),
            output: VecDeque::new(),
            sent: 0,
            answering: None,
            continued: false,
            end_of_input: false,
            closing: false,
        }
    }

    /// The stream.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether bytes from the client would be of use. A client that does not
    /// take its answers is not asked for more questions.
    pub fn wants_read(&self) -> bool {
        self.answering.is_none() && !self.wants_write() && !self.closing && !self.end_of_input
    }

    /// Whether bytes wait to be sent.
    pub fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads and writes what can be read and written now.
    pub fn advance(&mut self) -> Progress {
        match self.try_advance() {
            Ok(progress) => progress,
            // The client went away; it has nobody left to be told.
            Err(_) => Progress::Done,
        }
    }

    fn try_advance(&mut self) -> io::Result<Progress> {
        self.flush()?;
        if self.wants_read() {
            // A request that came with an earlier one needs no further bytes.
            if let Some(request) = self.next_request()? {
                return Ok(Progress::Request(request));
            }
            while self.wants_read() && self.fill()? {
                if let Some(request) = self.next_request()? {
                    return Ok(Progress::Request(request));
                }
            }
        }
        let finished = self.closing || self.end_of_input;
        if finished && self.answering.is_none() && !self.wants_write() {
            return Ok(Progress::Done);
        }
        Ok(Progress::Idle)
    }

    /// Answers the request that [`advance`](Self::advance) gave out.
    pub fn respond(&mut self, mut response: Response) -> Progress {
        self.waiting_since = Instant::now();
        if let Some(keep_alive) = self.answering.take() {
            response.close |= !keep_alive;
            self.queue(&response);
        }
        self.advance()
    }

    fn queue(&mut self, response: &Response) {
        self.output.push_back(Arc::new(response.head()));
        if let Some((_, body)) = &response.body
            && !body.is_empty()
        {
            self.output.push_back(Arc::clone(body));
        }
        self.closing |= response.close;
    }

    /// Takes a request out of the input, if one is complete.
    fn next_request(&mut self) -> io::Result<Option<Request>> {
        let head = match self.head.take() {
            Some(head) => head,
            None => match find_head(&self.input) {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(None),
                Err(error) => return self.refuse(&Response::refusal(&error)),
            },
        };
        let len = head.request_len();
        if self.input.len() < len {
            if head.expects_continue && self.input.len() == head.len && !self.continued {
                self.continued = true;
                self.output.push_back(Arc::new(CONTINUE.to_vec()));
                self.flush()?;
            }
            self.head = Some(head);
            return Ok(None);
        }
        let mut request = match Request::parse(&self.input, &head) {
            Ok(request) => request,
            Err(response) => return self.refuse(&response),
        };
        request.descriptors = self.descriptors.take();
        self.input.drain(..len);
        if self.input.is_empty() {
            // A large body would otherwise stay allocated for as long as the
            // client stays connected.
            self.input = Vec::new();
        }
        self.continued = false;
        self.answering = Some(request.keep_alive);
        Ok(Some(request))
    }

    fn refuse(&mut self, response: &Response) -> io::Result<Option<Request>> {
        // None of it is of use any more.
        drop(self.descriptors.take());
        self.queue(response);
        self.flush()?;
        Ok(None)
    }

    /// Whether it waits for a request and nothing of one has come; since when.
    pub fn idle_since(&self) -> Option<Instant> {
        let idle = self.wants_read() && self.input.is_empty() && self.descriptors.len() == 0;
        idle.then_some(self.waiting_since)
    }

    /// When the client's time is over, if it is the client that is waited for.
    pub fn deadline(&self) -> Option<Instant> {
        let waits_for_client =
            self.wants_write() || (self.answering.is_none() && self.idle_since().is_none());
        waits_for_client.then_some(self.waiting_since + CLIENT_TIMEOUT)
    }

    /// Ends a connection whose deadline has passed. Who still reads is told.
    pub fn expire(&mut self) -> Progress {
        if self.wants_write() {
            return Progress::Done;
        }
        let text = format!(
            "The request was not complete within {} s",
            CLIENT_TIMEOUT.as_secs()
        );
        let response = Response::error(408, ["Request Timeout".into(), text]);
        // What cannot be sent now is not worth waiting for.
        let _ = self.refuse(&response.closing());
        Progress::Done
    }

    /// Reads once; false if there is nothing to read now.
    fn fill(&mut self) -> io::Result<bool> {
        let old = self.input.len();
        if old == 0 {
            self.waiting_since = Instant::now();
        }
        let room = CHUNK.min(MAX_INPUT.saturating_sub(old).max(1));
        self.input.resize(old + room, 0);
        let mut descriptors = Vec::new();
        let outcome = loop {
            let buffer = &mut self.input[old..];
            match receive(&self.stream, buffer, &mut descriptors) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        };
        let read = *outcome.as_ref().unwrap_or(&0);
        self.input.truncate(old + read);
        if self.descriptors.len() + descriptors.len() > MAX_DESCRIPTORS {
            return Err(ErrorKind::InvalidData.into());
        }
        if let Err(error) = self.descriptors.add(descriptors) {
            let messages = ["Service Unavailable".to_owned(), error.to_string()];
            self.refuse(&Response::error(503, messages).closing())?;
            return Ok(false);
        }
        match outcome {
            Ok(0) => {
                self.end_of_input = true;
                Ok(false)
            }
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.wants_write() {
            let parts: Vec<_> = self
                .output
                .iter()
                .enumerate()
                .map(|(index, part)| match index {
                    0 => IoSlice::new(&part[self.sent..]),
                    _ => IoSlice::new(part),
                })
                .collect();
            match self.stream.write_vectored(&parts) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.waiting_since = Instant::now();
                    self.count_sent(written);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn count_sent(&mut self, written: usize) {
        self.sent += written;
        while let Some(part) = self.output.front()
            && self.sent >= part.len()
        {
            self.sent -= part.len();
            self.output.pop_front();
        }
    }
}

/// Reads once, descriptors included.
fn receive(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (server, client) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        (
            Connection::new(server, Budget::new(MAX_DESCRIPTORS)),
            client,
        )
    }

    fn received(client: &mut UnixStream) -> String {
        let mut text = Vec::new();
        let _ = client.read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    }

    fn path(progress: Progress) -> String {
        match progress {
            Progress::Request(request) => request.path,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_may_arrive_in_pieces() {
        let (mut connection, mut client) = pair();
        for byte in b"GET /a HTTP/1.1\r\nHost: x\r\n\r" {
            client.write_all(&[*byte]).unwrap();
            assert_eq!(connection.advance(), Progress::Idle);
        }
        client.write_all(b"\n").unwrap();
        assert_eq!(path(connection.advance()), "/a");
    }

    #[test]
    fn descriptors_come_with_their_request_and_end_with_it() {
        let (mut connection, client) = pair();
        let dir = tempfile::tempdir().unwrap();
        let paths = ["one", "two"].map(|name| dir.path().join(name));
        let files = paths.clone().map(|path| File::create(path).unwrap());
        let numbers = files.each_ref().map(AsRawFd::as_raw_fd);
        let whole: &[u8] = b"PUT /a HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody";
        client
            .send_with_fds(&[&whole[..10]], &numbers[..1])
            .unwrap();
        assert_eq!(connection.advance(), Progress::Idle);
        client
            .send_with_fds(&[&whole[10..]], &numbers[1..])
            .unwrap();
        let Progress::Request(request) = connection.advance() else {
            panic!("no request");
        };
        let came = request.descriptors.raw_fds();
        let opened = |number: &i32| std::fs::read_link(format!("/proc/self/fd/{number}")).ok();
        let found: Vec<_> = came.iter().filter_map(opened).collect();
        assert_eq!(found, paths);
        drop(request);
        assert!(
            came.iter()
                .filter_map(opened)
                .all(|path| !paths.contains(&path))
        );
        connection.respond(Response::no_content());
        client.send_with_fds(&[whole], &[]).unwrap();
        let Progress::Request(request) = connection.advance() else {
            panic!("no second request");
        };
        assert!(request.descriptors.is_empty());
    }

    #[test]
    fn a_client_that_piles_up_descriptors_is_cut_off() {
        let (mut connection, client) = pair();
        let null = File::open("/dev/null").unwrap();
        let numbers = [null.as_raw_fd(); 100];
        for _ in 0..2 {
            client.send_with_fds(&[b"P".as_slice()], &numbers).unwrap();
            assert_eq!(connection.advance(), Progress::Idle);
        }
        client.send_with_fds(&[b"P".as_slice()], &numbers).unwrap();
        assert_eq!(connection.advance(), Progress::Done);
    }

    #[test]
    fn clients_together_have_so_many_descriptors() {
        let budget = Budget::new(MAX_DESCRIPTORS);
        let connect = || {
            let (server, client) = UnixStream::pair().unwrap();
            server.set_nonblocking(true).unwrap();
            client.set_nonblocking(true).unwrap();
            (Connection::new(server, budget.clone()), client)
        };
        let null = File::open("/dev/null").unwrap();
        let numbers = [null.as_raw_fd(); 200];
        let (mut first, client) = connect();
        client.send_with_fds(&[b"P".as_slice()], &numbers).unwrap();
        assert_eq!(first.advance(), Progress::Idle);
        let (mut second, mut other) = connect();
        other.send_with_fds(&[b"P".as_slice()], &numbers).unwrap();
        assert_eq!(second.advance(), Progress::Done);
        assert!(received(&mut other).starts_with("HTTP/1.1 503"));
        drop((first, client));
        let (mut third, other) = connect();
        other.send_with_fds(&[b"P".as_slice()], &numbers).unwrap();
        assert_eq!(third.advance(), Progress::Idle);
    }

    #[test]
    fn who_begins_a_request_has_to_finish_it() {
        let (mut connection, mut client) = pair();
        assert!(connection.idle_since().is_some() && connection.deadline().is_none());
        client.write_all(b"GET /a HTTP/1.1\r\n").unwrap();
        assert_eq!(connection.advance(), Progress::Idle);
        assert!(connection.idle_since().is_none());
        let deadline = connection.deadline().unwrap();
        // More bytes do not put it off.
        client.write_all(b"X: y\r\n").unwrap();
        assert_eq!(connection.advance(), Progress::Idle);
        assert_eq!(connection.deadline(), Some(deadline));
        client.write_all(b"\r\n").unwrap();
        assert_eq!(path(connection.advance()), "/a");
        assert!(connection.deadline().is_none() && connection.idle_since().is_none());
        connection.respond(Response::empty());
        assert!(connection.idle_since().is_some());
        received(&mut client);

        client.write_all(b"GET /b").unwrap();
        assert_eq!(connection.advance(), Progress::Idle);
        assert_eq!(connection.expire(), Progress::Done);
        assert!(received(&mut client).starts_with("HTTP/1.1 408"));
    }

    #[test]
    fn requests_sent_ahead_are_answered_one_after_the_other() {
        let (mut connection, mut client) = pair();
        client
            .write_all(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\nConnection: close\r\n\r\n")
            .unwrap();
        assert_eq!(path(connection.advance()), "/a");
        assert!(!connection.wants_read());
        assert_eq!(connection.advance(), Progress::Idle);
        assert_eq!(path(connection.respond(Response::no_content())), "/b");
        assert_eq!(connection.respond(Response::empty()), Progress::Done);
        let text = received(&mut client);
        assert!(text.starts_with("HTTP/1.1 204 "), "{text}");
        assert!(text.contains("HTTP/1.1 200 "), "{text}");
        assert!(text.contains("Connection: close"), "{text}");
    }

    #[test]
    fn a_client_that_stops_sending_still_gets_its_answer() {
        let (mut connection, mut client) = pair();
        client.write_all(b"GET /a HTTP/1.1\r\n\r\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(path(connection.advance()), "/a");
        assert_eq!(connection.respond(Response::empty()), Progress::Done);
        assert!(received(&mut client).starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn a_client_that_leaves_in_the_middle_ends_its_connection() {
        let (mut connection, mut client) = pair();
        client.write_all(b"GET /a HT").unwrap();
        drop(client);
        assert_eq!(connection.advance(), Progress::Done);
    }

    #[test]
    fn nonsense_is_answered_and_ends_the_connection() {
        let (mut connection, mut client) = pair();
        client.write_all(b"\x16\x03\x01\x02\x00").unwrap();
        assert_eq!(connection.advance(), Progress::Done);
        assert!(received(&mut client).starts_with("HTTP/1.1 400"));
    }

    #[test]
    fn a_client_that_only_asks_cannot_pile_up_answers() {
        let (mut connection, mut client) = pair();
        let long = "x".repeat(1 << 20);
        let answer = || Response::text(super::super::ContentType::Json, long.clone().into_bytes());
        client
            .write_all(&b"GET /a HTTP/1.1\r\n\r\n".repeat(9))
            .unwrap();
        let mut progress = connection.advance();
        let mut answered = 0;
        while let Progress::Request(_) = progress {
            answered += 1;
            progress = connection.respond(answer());
        }
        assert_eq!(answered, 1);
        assert!(!connection.wants_read());
        while connection.wants_write() {
            received(&mut client);
            progress = connection.advance();
        }
        assert_eq!(path(progress), "/a");
    }

    #[test]
    fn a_large_body_and_a_slow_reader_are_no_problem() {
        let (mut connection, mut client) = pair();
        let body = vec![b'x'; MAX_BODY];
        let head = format!(
            "PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        client.write_all(head.as_bytes()).unwrap();
        assert_eq!(connection.advance(), Progress::Idle);
        assert_eq!(received(&mut client).as_bytes(), CONTINUE);
        let mut sent = 0;
        let request = loop {
            if let Ok(written) = client.write(&body[sent..]) {
                sent += written;
            }
            match connection.advance() {
                Progress::Idle => {}
                Progress::Request(request) => break request,
                Progress::Done => panic!("closed"),
            }
        };
        assert_eq!(request.body.len(), MAX_BODY);
        assert_eq!(
            connection.respond(Response::text(super::super::ContentType::Json, body)),
            Progress::Idle
        );
        assert!(connection.wants_write());
        let mut total = 0;
        while connection.wants_write() {
            total += received(&mut client).len();
            assert_eq!(connection.advance(), Progress::Idle);
        }
        total += received(&mut client).len();
        assert!(total > MAX_BODY);
    }
}
