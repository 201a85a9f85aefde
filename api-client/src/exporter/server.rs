//! The event loop: one thread for all scrapers, one that scrapes.
//!
//! Scrapers that ask while a scrape runs wait for the next one and share it, so
//! that a scrape is never older than the question, and many scrapers cost
//! little more than one.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use instrumentation::encode::CONTENT_TYPE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::{Connection, Step};
use super::http::{Answer, Request};
use super::log::Log;

/// Clients that may be connected. A further one takes the place of the one
/// whose request is overdue the longest.
const MAX_CONNECTIONS: usize = 256;
/// How long nothing is accepted after that failed: descriptors are short, and
/// without a pause the loop would spin on the client that waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Makes the text of a scrape.
pub trait Scraper: Send + 'static {
    /// The metrics of now, within `patience` if the clients have said theirs.
    fn scrape(&mut self, patience: Option<Duration>) -> String;
}

/// Serves scrapes.
///
/// # Errors
///
/// The event loop cannot be set up, or the thread that scrapes has ended.
/// Nothing that a client does is an error.
pub fn serve(listener: TcpListener, scraper: impl Scraper) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let (wake, waker) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    let (start, starts) = channel();
    let (send, metrics) = channel();
    std::thread::Builder::new()
        .name("scrape".into())
        .spawn(move || work(scraper, &starts, &send, &waker))?;
    Server {
        listener,
        wake,
        start,
        metrics,
        connections: BTreeMap::new(),
        next_token: 0,
        asking: Vec::new(),
        shared: None,
        accept_after: None,
        log: Log::default(),
    }
    .run()
}

/// Scrapes once for each order.
fn work(
    mut scraper: impl Scraper,
    starts: &Receiver<Option<Duration>>,
    metrics: &Sender<String>,
    waker: &UnixStream,
) {
    while let Ok(patience) = starts.recv() {
        let sent = metrics.send(scraper.scrape(patience));
        let mut waker = waker;
        if sent.is_err() || waker.write_all(&[0]).is_err() {
            return;
        }
    }
}

/// A client that wants metrics.
#[derive(Debug)]
struct Asking {
    token: u64,
    gzip: bool,
    patience: Option<Duration>,
}

struct Server {
    listener: TcpListener,
    /// Readable when a scrape is done.
    wake: UnixStream,
    start: Sender<Option<Duration>>,
    metrics: Receiver<String>,
    /// By the order in which they came.
    connections: BTreeMap<u64, Connection>,
    next_token: u64,
    /// Wait for the next scrape.
    asking: Vec<Asking>,
    /// Wait for the scrape that runs; `None` if none does.
    shared: Option<Vec<Asking>>,
    /// Nothing is accepted before this.
    accept_after: Option<Instant>,
    log: Log,
}

impl Server {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            let now = Instant::now();
            for token in ready.clients {
                self.advance(token, now);
            }
            if ready.scraped {
                self.deliver(now)?;
            }
            if ready.accept {
                self.accept(now);
            }
            self.connections
                .retain(|_, connection| connection.deadline().is_none_or(|end| end > now));
            if self.shared.is_none() && !self.asking.is_empty() {
                let asking = std::mem::take(&mut self.asking);
                let patience = asking.iter().filter_map(|asking| asking.patience).min();
                self.shared = Some(asking);
                self.start.send(patience).map_err(|_| scraper_ended())?;
            }
        }
    }

    /// Waits until something can be done.
    fn wait(&self) -> io::Result<Ready> {
        let now = Instant::now();
        let accepting = self.accept_after.is_none_or(|after| after <= now);
        let next = self
            .connections
            .values()
            .filter_map(Connection::deadline)
            .chain(self.accept_after.filter(|_| !accepting))
            .min();
        let timeout = next.and_then(|next| {
            // One millisecond more, so that the deadline has passed for sure.
            let left = next.saturating_duration_since(now) + Duration::from_millis(1);
            Timespec::try_from(left).ok()
        });
        let listening = match accepting {
            true => PollFlags::IN,
            false => PollFlags::empty(),
        };
        let mut fds = vec![
            PollFd::new(&self.wake, PollFlags::IN),
            PollFd::new(&self.listener, listening),
        ];
        fds.extend(
            self.connections
                .values()
                .map(|connection| PollFd::new(connection.stream(), connection.interest())),
        );
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd| !fd.revents().is_empty();
        Ok(Ready {
            scraped: is_ready(&fds[0]),
            accept: is_ready(&fds[1]),
            clients: self
                .connections
                .keys()
                .zip(&fds[2..])
                .filter(|(_, fd)| is_ready(fd))
                .map(|(token, _)| *token)
                .collect(),
        })
    }

    fn accept(&mut self, now: Instant) {
        self.accept_after = None;
        // The rest of a crowd waits until those who are connected were served.
        for _ in 0..MAX_CONNECTIONS {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionAborted | ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    // Out of descriptors or memory, most likely.
                    self.log
                        .line(&format!("Cannot accept a client: {error}"), now);
                    self.evict();
                    self.accept_after = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, now: Instant) {
        if self.connections.len() >= MAX_CONNECTIONS {
            self.evict();
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            return;
        }
        if let Ok(connection) = Connection::new(stream, now) {
            self.connections.insert(self.next_token, connection);
            self.next_token += 1;
        }
    }

    /// Closes the connection that can best be missed: the oldest whose request
    /// is not complete, else the oldest that takes its time to read.
    fn evict(&mut self) {
        let oldest = |wanted: fn(&Connection) -> bool| {
            let mut all = self.connections.iter();
            all.find(|(_, connection)| wanted(connection))
                .map(|(token, _)| *token)
        };
        let victim = oldest(Connection::is_receiving)
            .or_else(|| oldest(|connection| connection.deadline().is_some()));
        if let Some(token) = victim {
            self.connections.remove(&token);
        }
    }

    fn advance(&mut self, token: u64, now: Instant) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        let step = connection.advance(now);
        let step = match step {
            Step::Asked(request) => match answer_at_once(&request) {
                Some(answer) => connection.answer(&answer, now),
                None => {
                    self.asking.push(Asking {
                        token,
                        gzip: request.gzip,
                        patience: request.patience,
                    });
                    Step::Idle
                }
            },
            step => step,
        };
        if step == Step::Done {
            self.connections.remove(&token);
        }
    }

    /// Answers those who waited for the scrape that is done.
    fn deliver(&mut self, now: Instant) -> io::Result<()> {
        let mut bytes = [0; 64];
        match self.wake.read(&mut bytes) {
            Ok(0) => return Err(scraper_ended()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let Ok(text) = self.metrics.try_recv() else {
            return Ok(());
        };
        let plain = Answer {
            content_type: CONTENT_TYPE,
            body: Arc::new(text.into_bytes()),
            ..Answer::text("200 OK", "")
        };
        let mut compressed = None;
        for Asking { token, gzip, .. } in self.shared.take().unwrap_or_default() {
            let Some(connection) = self.connections.get_mut(&token) else {
                continue;
            };
            let answer = match gzip {
                true => compressed.get_or_insert_with(|| compress(&plain)),
                false => &plain,
            };
            if connection.answer(answer, now) == Step::Done {
                self.connections.remove(&token);
            }
        }
        Ok(())
    }
}

/// What can be done after a wait.
#[derive(Debug, Default)]
struct Ready {
    scraped: bool,
    accept: bool,
    clients: Vec<u64>,
}

/// Answers what needs no scrape.
fn answer_at_once(request: &Request) -> Option<Answer> {
    match request.path.as_str() {
        "/metrics" => None,
        "/" => Some(Answer {
            content_type: "text/html; charset=utf-8",
            ..Answer::text(
                "200 OK",
                "<!doctype html><title>VM exits</title><a href=\"/metrics\">Metrics</a>\n",
            )
        }),
        _ => Some(Answer::text(
            "404 Not Found",
            "Unknown path; valid: /metrics\n",
        )),
    }
}

/// The same with a body that gzip made smaller; unchanged if it cannot.
fn compress(answer: &Answer) -> Answer {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    match encoder
        .write_all(&answer.body)
        .and_then(|()| encoder.finish())
    {
        Ok(body) => Answer {
            encoding: Some("gzip"),
            body: Arc::new(body),
            ..answer.clone()
        },
        Err(_) => answer.clone(),
    }
}

fn scraper_ended() -> io::Error {
    io::Error::other("the thread that scrapes has ended")
}
