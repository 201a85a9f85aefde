//! One scraper's connection: a request within a deadline, an answer within
//! another, and the end.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::http::{self, Answer, Parsed, Request};

/// How long a request may take to arrive, however many pieces it comes in.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to read its answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Where an exchange stands.
#[derive(Debug)]
enum Stage {
    /// The request arrives; these are its bytes so far.
    Receiving(Vec<u8>),
    /// The request is complete, its answer is being made.
    Waiting,
    /// The answer leaves; so much of its head and body is gone.
    Sending {
        parts: [Arc<Vec<u8>>; 2],
        sent: usize,
    },
}

/// What a connection needs of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// To be polled again.
    Idle,
    /// An answer to this request.
    Asked(Request),
    /// To be closed.
    Done,
}

/// A connection over a stream that does not block.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    stage: Stage,
    deadline: Instant,
}

impl Connection {
    /// A connection that was accepted at `now`.
    pub fn new(stream: TcpStream, now: Instant) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Connection {
            stream,
            stage: Stage::Receiving(Vec::new()),
            deadline: now + REQUEST_TIMEOUT,
        })
    }

    /// The stream.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// What it waits for.
    pub fn interest(&self) -> PollFlags {
        match self.stage {
            Stage::Receiving(_) => PollFlags::IN,
            // That the client is gone is told in any case.
            Stage::Waiting => PollFlags::empty(),
            Stage::Sending { .. } => PollFlags::OUT,
        }
    }

    /// When the client has had its time; `None` while the server is to act.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Waiting => None,
            _ => Some(self.deadline),
        }
    }

    /// Whether its request is not complete yet.
    pub fn is_receiving(&self) -> bool {
        matches!(self.stage, Stage::Receiving(_))
    }

    /// Reads or writes what can be read or written now.
    pub fn advance(&mut self, now: Instant) -> Step {
        match &mut self.stage {
            Stage::Receiving(bytes) => {
                let mut chunk = [0; 2048];
                match self.stream.read(&mut chunk) {
                    Ok(0) => return Step::Done,
                    Ok(count) => bytes.extend_from_slice(&chunk[..count]),
                    Err(error) => return after(&error),
                }
                match http::parse(bytes) {
                    Parsed::Partial => Step::Idle,
                    Parsed::Complete(request) => {
                        self.stage = Stage::Waiting;
                        Step::Asked(request)
                    }
                    Parsed::Refused(answer) => self.answer(&answer, now),
                }
            }
            // Nothing is awaited of the client, so it has hung up.
            Stage::Waiting => Step::Done,
            Stage::Sending { .. } => self.send(),
        }
    }

    /// Sends an answer.
    pub fn answer(&mut self, answer: &Answer, now: Instant) -> Step {
        self.deadline = now + ANSWER_TIMEOUT;
        self.stage = Stage::Sending {
            parts: [Arc::new(answer.head()), Arc::clone(&answer.body)],
            sent: 0,
        };
        self.send()
    }

    fn send(&mut self) -> Step {
        let Stage::Sending { parts, sent } = &mut self.stage else {
            return Step::Idle;
        };
        loop {
            let [head, body] = &*parts;
            let rest = match sent.checked_sub(head.len()) {
                None => &head[*sent..],
                Some(of_body) => &body[of_body..],
            };
            if rest.is_empty() {
                return Step::Done;
            }
            match self.stream.write(rest) {
                Ok(0) => return Step::Done,
                Ok(count) => *sent += count,
                Err(error) => return after(&error),
            }
        }
    }
}

fn after(error: &std::io::Error) -> Step {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Step::Idle,
        _ => Step::Done,
    }
}
