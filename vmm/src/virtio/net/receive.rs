//! From the tap to the guest.
//!
//! Chains are taken ahead, so that one call to the kernel can fill as many as a
//! packet needs. What a packet has beyond them goes to a buffer of our own and
//! is copied once the driver has added more; that is rare, and it means that
//! packets are neither cut off nor kept waiting for room that they do not need.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::counters::PairCounters;
use super::header::{HEADER_LENGTH, MAX_PACKET, NUM_BUFFERS};
use crate::memory::{IoVecs, IoVecsError};
use crate::virtio::rate_limit::RateLimiter;
use crate::virtio::{Chain, GuestFaults, QueueError, VirtQueue};

/// So many packets before others have their turn.
const BUDGET: usize = 256;

/// What a round of work ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// The tap has no packet, or others are to have their turn: go on when the
    /// tap is readable.
    NoPacket,
    /// The driver has given no buffers: go on when it kicks.
    NoBuffers,
    /// Go on when the limit allows.
    Limited,
    /// The interface does not use this queue.
    Detached,
}

/// Why a chain cannot take packets.
#[derive(Debug, thiserror::Error)]
enum BufferError {
    #[error("A receive buffer without room")]
    Empty,
    #[error("A receive buffer that the device may not write")]
    ReadOnly,
    #[error(transparent)]
    Scatter(#[from] IoVecsError),
    #[error("A packet of {0} bytes is too long for its receive buffer")]
    TooShort(usize),
}

/// A chain that waits for a packet.
struct Waiting {
    head: u16,
    length: usize,
    pieces: usize,
}

/// A packet of which part lies in `rest`.
#[derive(Clone, Copy)]
struct Spilled {
    /// Of all of it.
    length: usize,
    /// Of the part in the buffers.
    placed: usize,
}

/// The receiving half of a queue pair.
pub(super) struct Receiver {
    queue: VirtQueue,
    /// A packet may lie in several chains.
    mergeable: bool,
    /// Chains taken, in order, and the buffers of all of them.
    chains: VecDeque<Waiting>,
    buffers: IoVecs,
    /// What did not fit into the buffers.
    rest: Vec<u8>,
    spilled: Option<Spilled>,
    done: Vec<(u16, u32)>,
    faults: Arc<GuestFaults>,
    counters: Arc<PairCounters>,
}

impl Receiver {
    pub(super) fn new(
        queue: VirtQueue,
        mergeable: bool,
        faults: Arc<GuestFaults>,
        counters: Arc<PairCounters>,
    ) -> Self {
        let buffers = IoVecs::new(Arc::clone(queue.memory()));
        Self {
            queue,
            mergeable,
            chains: VecDeque::new(),
            buffers,
            rest: vec![0; MAX_PACKET],
            spilled: None,
            done: Vec::new(),
            faults,
            counters,
        }
    }

    pub(super) fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    /// Puts the chains that were taken ahead back into the queue. What has come
    /// of a packet beyond them is kept.
    pub(super) fn put_back(&mut self) {
        for _ in self.chains.drain(..) {
            self.queue.push_back();
        }
        self.buffers.clear();
    }

    /// Carries packets until something is missing.
    pub(super) fn run(
        &mut self,
        tap: BorrowedFd<'_>,
        limiter: &mut Option<RateLimiter>,
    ) -> Result<Received, QueueError> {
        let mut left = BUDGET;
        let outcome = loop {
            if left == 0 {
                break Received::NoPacket;
            }
            left -= 1;
            if !self.take_buffers()? {
                break Received::NoBuffers;
            }
            if limiter.as_mut().is_some_and(|limiter| !limiter.may_pass()) {
                break Received::Limited;
            }
            match self.buffers.read_from(tap, 0, usize::MAX, &mut self.rest) {
                Ok(length) => {
                    if let Some(limiter) = limiter {
                        limiter.charge(length.saturating_sub(HEADER_LENGTH) as u64);
                    }
                    self.arrived(length)?;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => break Received::NoPacket,
                    Some(libc::EBADFD) => break Received::Detached,
                    Some(libc::EIO | libc::EBADF | libc::ENODEV) => {
                        log::warn!("cannot read from the tap: {error}");
                        break Received::Detached;
                    }
                    // This packet is lost, the next may not be.
                    _ => log::debug!("cannot read from the tap: {error}"),
                },
            }
        };
        self.queue.notify()?;
        Ok(outcome)
    }

    /// Takes chains ahead; false if nothing can be read for want of them. The
    /// driver kicks then.
    fn take_buffers(&mut self) -> Result<bool, QueueError> {
        // A driver that never stops adding useless chains waits its turn.
        let mut left = self.queue.size();
        loop {
            let mut full = false;
            while left > 0
                && !full
                && self.wants_more()
                && let Some(chain) = self.queue.pop()?
            {
                full = !self.take(&chain)?;
                left -= 1;
            }
            if let Some(spilled) = self.spilled {
                self.continue_spilled(spilled, full)?;
                if self.spilled.is_none() {
                    continue;
                }
            } else if !self.chains.is_empty() {
                self.queue.stop_kicks()?;
                return Ok(true);
            }
            if !self.queue.want_kicks()? {
                return Ok(false);
            }
            if left == 0 {
                self.queue.kick_again();
                return Ok(false);
            }
        }
    }

    fn wants_more(&self) -> bool {
        if self.mergeable {
            self.buffers.length() < self.spilled.map_or(MAX_PACKET, |spilled| spilled.length)
        } else {
            self.chains.is_empty()
        }
    }

    /// False if the list is full.
    fn take(&mut self, chain: &Chain) -> Result<bool, QueueError> {
        let before = self.buffers.count();
        let length_before = self.buffers.length();
        match self.push(chain) {
            Ok(()) => {
                self.chains.push_back(Waiting {
                    head: chain.head_index(),
                    length: self.buffers.length() - length_before,
                    pieces: self.buffers.count() - before,
                });
                Ok(true)
            }
            Err(error) => {
                self.buffers.truncate(before);
                let full = matches!(error, BufferError::Scatter(IoVecsError::TooMany));
                if full && before > 0 {
                    // It may be fine by itself.
                    self.queue.push_back();
                    return Ok(false);
                }
                self.faults.report(&error);
                self.queue.complete(chain.head_index(), 0)?;
                Ok(true)
            }
        }
    }

    fn push(&mut self, chain: &Chain) -> Result<(), BufferError> {
        let before = self.buffers.length();
        for descriptor in chain.clone() {
            if !descriptor.is_write_only() {
                return Err(BufferError::ReadOnly);
            }
            self.buffers
                .push(descriptor.addr(), descriptor.len() as usize)?;
        }
        if self.buffers.length() == before {
            return Err(BufferError::Empty);
        }
        Ok(())
    }

    /// A packet of `length` bytes, with its header, has come.
    fn arrived(&mut self, length: usize) -> Result<(), QueueError> {
        if length < HEADER_LENGTH {
            // Nothing the driver could make sense of.
            return Ok(());
        }
        let room = self.buffers.length();
        if length <= room {
            return self.deliver(length);
        }
        if self.mergeable {
            self.spilled = Some(Spilled {
                length,
                placed: room,
            });
        } else {
            self.faults.report(&BufferError::TooShort(length));
        }
        Ok(())
    }

    /// Copies the rest of a packet if there is room by now. There is none to
    /// come if the list is `full`.
    fn continue_spilled(&mut self, spilled: Spilled, full: bool) -> Result<(), QueueError> {
        let Spilled { length, placed } = spilled;
        if self.buffers.length() >= length {
            self.spilled = None;
            // Cannot fail: there is room, and `rest` has what was read.
            let rest = self.rest.get(..length - placed).unwrap_or_default();
            let _ = self.buffers.write_at(placed, rest);
            return self.deliver(length);
        }
        if full {
            self.spilled = None;
            self.faults.report(&BufferError::TooShort(length));
        }
        Ok(())
    }

    /// Gives the packet in the first buffers to the driver.
    fn deliver(&mut self, length: usize) -> Result<(), QueueError> {
        self.done.clear();
        let mut left = length;
        let mut pieces = 0;
        while left > 0
            && let Some(chain) = self.chains.pop_front()
        {
            let part = left.min(chain.length);
            self.done.push((chain.head, part as u32));
            pieces += chain.pieces;
            left -= part;
        }
        let count = (self.done.len() as u16).to_le_bytes();
        // Cannot fail: a packet is longer than its header.
        let _ = self.buffers.write_at(NUM_BUFFERS, &count);
        self.buffers.consume(pieces);
        self.counters.received(length - HEADER_LENGTH);
        self.queue.complete_together(&self.done)
    }
}
