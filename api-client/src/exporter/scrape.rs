//! Asks all VMs at once, and waits for none longer than for the others.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use instrumentation::snapshot::ExitSnapshot;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::client::{Incoming, Method, Response, connect_now, request_bytes};

/// VMs that are asked at a time: each takes a descriptor.
const MAX_PENDING: usize = 128;
/// Bytes of an answer. One with all reasons of 64 vCPUs has under a megabyte.
const MAX_ANSWER: usize = 32 << 20;
/// Between attempts at a VM whose queue of clients is full.
const RETRY: Duration = Duration::from_millis(5);

/// Rows that are all zero make no series, so they need not travel.
const TARGET: &str = "/exit-stats?nonzero=true";

/// Why there are no statistics of a VM.
#[derive(Debug)]
pub enum Down {
    /// The socket is not there.
    Missing,
    /// This process may not open it.
    Permission,
    /// Nobody listens at it: its VMM has died.
    Refused,
    /// The VMM does not answer in time.
    Timeout,
    /// The VMM runs no VM.
    NoVm,
    /// What answers is not this VMM; the text says how that shows.
    Protocol(String),
    /// This process cannot ask, for want of descriptors or memory.
    Resources(io::Error),
}

impl Down {
    /// The reason as a label, from a small set that never changes.
    pub fn label(&self) -> &'static str {
        match self {
            Down::Missing => "missing",
            Down::Permission => "permission",
            Down::Refused => "refused",
            Down::Timeout => "timeout",
            Down::NoVm => "no_vm",
            Down::Protocol(_) => "protocol",
            Down::Resources(_) => "resources",
        }
    }
}

impl std::fmt::Display for Down {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Down::Missing => f.write_str("the socket does not exist"),
            Down::Permission => f.write_str("permission denied to connect to the socket"),
            Down::Refused => f.write_str("no process listens on the socket"),
            Down::Timeout => f.write_str("the VMM did not answer in time"),
            Down::NoVm => f.write_str("the VMM runs no VM"),
            Down::Protocol(why) => write!(f, "invalid answer: {why}"),
            Down::Resources(error) => write!(f, "the exporter cannot connect: {error}"),
        }
    }
}

impl From<io::Error> for Down {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Down::Missing,
            ErrorKind::PermissionDenied => Down::Permission,
            ErrorKind::ConnectionRefused => Down::Refused,
            ErrorKind::TimedOut => Down::Timeout,
            _ => match Errno::from_io_error(&error) {
                Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                    Down::Resources(error)
                }
                _ => Down::Protocol(error.to_string()),
            },
        }
    }
}

/// A VM's statistics, or why there are none.
pub type Outcome = Result<ExitSnapshot, Down>;

/// A VM that has been asked.
struct Pending<'a> {
    name: &'a str,
    stream: UnixStream,
    unsent: &'a [u8],
    incoming: Incoming,
}

/// Asks every VM; all of it takes at most `timeout`. Those that come first in
/// `sockets` are asked first.
pub fn ask_all(sockets: &[(&str, &Path)], timeout: Duration) -> BTreeMap<String, Outcome> {
    let deadline = Instant::now() + timeout;
    let mut outcomes = BTreeMap::new();
    let mut waiting: VecDeque<_> = sockets.iter().copied().collect();
    let request = request_bytes(Method::Get, TARGET, None);
    let mut pending: Vec<Pending> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut retry = false;
        for _ in 0..waiting.len() {
            if pending.len() >= MAX_PENDING {
                break;
            }
            let Some((name, path)) = waiting.pop_front() else {
                break;
            };
            match connect_now(path) {
                Ok(stream) => pending.push(Pending::new(name, stream, &request)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    waiting.push_back((name, path));
                    retry = true;
                }
                Err(error) => {
                    outcomes.insert(name.to_owned(), Err(error.into()));
                }
            }
        }
        let now = Instant::now();
        if (pending.is_empty() && waiting.is_empty()) || now >= deadline {
            break;
        }
        let mut left = deadline.saturating_duration_since(now) + Duration::from_millis(1);
        if retry {
            left = left.min(RETRY);
        }
        for index in wait(&pending, left).into_iter().rev() {
            if let Some(outcome) = pending[index].advance(&mut buffer) {
                let done = pending.swap_remove(index);
                outcomes.insert(done.name.to_owned(), outcome);
            }
        }
    }
    let late = pending.iter().map(|pending| pending.name);
    for name in late.chain(waiting.iter().map(|(name, _)| *name)) {
        outcomes.insert(name.to_owned(), Err(Down::Timeout));
    }
    outcomes
}

/// The indices of those that can go on, in ascending order.
fn wait(pending: &[Pending], left: Duration) -> Vec<usize> {
    let mut fds: Vec<_> = pending
        .iter()
        .map(|pending| PollFd::new(&pending.stream, pending.interest()))
        .collect();
    let timeout = Timespec::try_from(left).ok();
    // Interrupted, or no memory: the caller asks again until its deadline.
    if poll(&mut fds, timeout.as_ref()).is_err() {
        std::thread::sleep(Duration::from_millis(1));
        return Vec::new();
    }
    let ready = |(index, fd): (usize, &PollFd)| (!fd.revents().is_empty()).then_some(index);
    fds.iter().enumerate().filter_map(ready).collect()
}

impl<'a> Pending<'a> {
    fn new(name: &'a str, socket: OwnedFd, request: &'a [u8]) -> Self {
        Pending {
            name,
            stream: socket.into(),
            unsent: request,
            incoming: Incoming::new(MAX_ANSWER),
        }
    }

    fn interest(&self) -> PollFlags {
        match self.unsent.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::OUT,
        }
    }

    /// Writes or reads once; the outcome once there is one.
    fn advance(&mut self, buffer: &mut [u8]) -> Option<Outcome> {
        if !self.unsent.is_empty() {
            return match self.stream.write(self.unsent) {
                Ok(count) => {
                    self.unsent = &self.unsent[count..];
                    None
                }
                Err(error) => failed(error),
            };
        }
        match self.incoming.read_from(&mut self.stream, buffer) {
            Err(error) => failed(error),
            Ok(more) => match self.incoming.response(!more) {
                Ok(None) => None,
                Ok(Some(response)) => Some(judge(&response)),
                Err(error) => Some(Err(Down::Protocol(error.to_string()))),
            },
        }
    }
}

fn failed(error: io::Error) -> Option<Outcome> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => None,
        _ => Some(Err(error.into())),
    }
}

fn judge(response: &Response) -> Outcome {
    match response.status {
        200 => serde_json::from_str(response.body.as_deref().unwrap_or_default())
            .map_err(|error| Down::Protocol(error.to_string())),
        404 if !response.messages().is_empty() => Err(Down::NoVm),
        status => Err(Down::Protocol(format!("status {status}"))),
    }
}
