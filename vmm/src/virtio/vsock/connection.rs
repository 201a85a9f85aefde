//! One connection: credit in both directions, and the host's stream.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::packet::{HEADER_LENGTH, MAX_DATA};
use crate::memory::IoVecs;

/// Bytes that are kept for a host program that reads slowly.
pub(super) const BUFFER: u32 = 256 << 10;
/// The guest hears of room once there is so much more than it knows of.
const CREDIT_STEP: u32 = BUFFER / 4;

/// The ports of a connection, which identify it: there is one guest and one
/// host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest has been asked.
    Requested,
    /// Data flows.
    Open,
}

/// What a try to read from the host came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FromHost {
    /// So many bytes lie behind the header.
    Data(u32),
    /// Not now.
    Nothing,
    /// The host sends no more.
    End,
}

/// A connection. The stream never blocks.
pub(super) struct Connection {
    stream: UnixStream,
    pub(super) token: u32,
    pub(super) phase: Phase,
    /// What the stream is waited for.
    pub(super) interest: EventSet,
    /// There is something to read, or it ended, and the guest has not got it.
    pub(super) readable: bool,
    /// When it is given up.
    pub(super) deadline: Option<Instant>,

    /// Bytes sent to the guest, what it can buffer and what it has passed on.
    sent: u32,
    peer_buffer: u32,
    peer_forwarded: u32,
    /// The guest was asked for credit.
    pub(super) credit_requested: bool,
    /// The guest takes no more.
    peer_closed: bool,
    /// The host sends no more.
    pub(super) host_ended: bool,

    /// Bytes from the guest that the host has not taken.
    pending: VecDeque<u8>,
    /// Bytes from the guest that it has, and how many the guest knows of.
    forwarded: u32,
    told: u32,
    /// The guest sends no more.
    peer_ended: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, token: u32, phase: Phase) -> Self {
        Self {
            stream,
            token,
            phase,
            interest: EventSet::empty(),
            readable: false,
            deadline: None,
            sent: 0,
            peer_buffer: 0,
            peer_forwarded: 0,
            credit_requested: false,
            peer_closed: false,
            host_ended: false,
            pending: VecDeque::new(),
            forwarded: 0,
            told: 0,
            peer_ended: false,
        }
    }

    /// The guest's word on what it takes.
    pub(super) fn update_credit(&mut self, buffer: u32, forwarded: u32) {
        self.peer_buffer = buffer;
        self.peer_forwarded = forwarded;
        if self.credit() > 0 {
            self.credit_requested = false;
        }
    }

    /// Bytes that the guest takes now. Nonsense means none.
    pub(super) fn credit(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buffer.saturating_sub(under_way)
    }

    /// What the guest is to know of our side.
    pub(super) fn tell_forwarded(&mut self) -> u32 {
        self.told = self.forwarded;
        self.forwarded
    }

    /// The guest knows of so little room that it should be told.
    pub(super) fn owes_credit_update(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= CREDIT_STEP
    }

    /// Whether to read from the host at all.
    pub(super) fn reads_host(&self) -> bool {
        self.phase == Phase::Open && !self.host_ended && !self.peer_closed
    }

    /// What to wait for.
    pub(super) fn wanted(&self) -> EventSet {
        let mut wanted = EventSet::empty();
        if self.reads_host() && !self.readable {
            wanted |= EventSet::IN;
        }
        if !self.pending.is_empty() {
            wanted |= EventSet::OUT;
        }
        wanted
    }

    /// Reads from the host behind the header in `buffers`, within the guest's
    /// credit.
    pub(super) fn read_host(&mut self, buffers: &mut IoVecs) -> io::Result<FromHost> {
        let limit = MAX_DATA.min(self.credit() as usize);
        match buffers.read_from(self.stream.as_fd(), HEADER_LENGTH, limit, &mut []) {
            Ok(0) => Ok(FromHost::End),
            Ok(count) => {
                self.sent = self.sent.wrapping_add(count as u32);
                Ok(FromHost::Data(count as u32))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(FromHost::Nothing),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(FromHost::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Whether `length` more bytes from the guest are within what it was
    /// allowed, and come at a time when it may send.
    pub(super) fn may_send(&self, length: usize) -> bool {
        self.phase == Phase::Open
            && !self.peer_ended
            && length <= BUFFER as usize - self.pending.len().min(BUFFER as usize)
    }

    /// Passes on `length` bytes that lie behind the header in `buffers`, and
    /// keeps what the host does not take.
    pub(super) fn write_host(&mut self, buffers: &mut IoVecs, length: usize) -> io::Result<()> {
        let mut done = 0;
        while self.pending.is_empty() && done < length {
            let at = HEADER_LENGTH + done;
            match buffers.write_to(self.stream.as_fd(), at, length - done) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    done += count;
                    self.forwarded = self.forwarded.wrapping_add(count as u32);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let mut rest = vec![0; length - done];
        if buffers.read_at(HEADER_LENGTH + done, &mut rest) {
            self.pending.extend(rest);
        }
        Ok(())
    }

    /// Writes to the host directly, before any data of the guest.
    pub(super) fn greet(&mut self, text: &[u8]) -> io::Result<()> {
        self.stream.write_all(text)
    }

    /// Passes on what was kept.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            let (first, _) = self.pending.as_slices();
            match self.stream.write(first) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.pending.drain(..count);
                    self.forwarded = self.forwarded.wrapping_add(count as u32);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.pending.capacity() > CREDIT_STEP as usize {
            self.pending = VecDeque::new();
        }
        if self.peer_ended {
            self.end_stream();
        }
        Ok(())
    }

    /// The guest ends directions of the connection.
    pub(super) fn guest_shutdown(&mut self, receive: bool, send: bool) {
        self.peer_closed |= receive;
        self.peer_ended |= send;
        if self.peer_ended && self.pending.is_empty() {
            self.end_stream();
        }
    }

    /// Both directions have ended on the guest's side and the host has
    /// everything.
    pub(super) fn is_over(&self) -> bool {
        self.peer_closed && self.peer_ended && self.pending.is_empty()
    }

    /// The guest sends no more, and the host has not taken everything.
    pub(super) fn is_draining(&self) -> bool {
        self.peer_ended && !self.pending.is_empty()
    }

    fn end_stream(&self) {
        // It may be gone already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Whether the host takes no more either.
    pub(super) fn host_is_gone(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut poll_fd = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let answered = poll(&mut poll_fd, Some(&now)).is_ok();
        answered && poll_fd[0].revents().contains(PollFlags::HUP)
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
