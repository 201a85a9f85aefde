//! From the guest to the tap, straight from the driver's buffers.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::counters::PairCounters;
use super::header::{HEADER_LENGTH, MAX_PACKET};
use crate::memory::{IoVecs, IoVecsError};
use crate::virtio::rate_limit::RateLimiter;
use crate::virtio::{Chain, GuestFaults, QueueError, VirtQueue};

/// What a round of work ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transmitted {
    /// The queue is empty: go on when the driver kicks.
    NoPacket,
    /// The tap is full: go on when it takes packets again.
    TapFull,
    /// Go on when the limit allows.
    Limited,
}

/// Why a chain is no packet.
#[derive(Debug, thiserror::Error)]
enum PacketError {
    #[error("A packet in buffers for the device to write")]
    Writable,
    #[error("A packet of {0} bytes with its header")]
    Length(usize),
    #[error(transparent)]
    Scatter(#[from] IoVecsError),
    #[error("A packet that the host refuses: {0}")]
    Refused(std::io::Error),
}

/// The transmitting half of a queue pair.
pub(super) struct Transmitter {
    queue: VirtQueue,
    buffers: IoVecs,
    faults: Arc<GuestFaults>,
    counters: Arc<PairCounters>,
}

impl Transmitter {
    pub(super) fn new(
        queue: VirtQueue,
        faults: Arc<GuestFaults>,
        counters: Arc<PairCounters>,
    ) -> Self {
        let buffers = IoVecs::new(Arc::clone(queue.memory()));
        Self {
            queue,
            buffers,
            faults,
            counters,
        }
    }

    pub(super) fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    /// Carries packets until something is missing.
    pub(super) fn run(
        &mut self,
        tap: BorrowedFd<'_>,
        limiter: &mut Option<RateLimiter>,
    ) -> Result<Transmitted, QueueError> {
        // One round of the ring, then others have their turn.
        let mut left = self.queue.size();
        loop {
            self.queue.stop_kicks()?;
            let mut missing = None;
            while left > 0
                && missing.is_none()
                && let Some(chain) = self.queue.pop()?
            {
                missing = self.send(&chain, tap, limiter);
                if missing.is_some() {
                    self.queue.push_back();
                } else {
                    self.queue.complete(chain.head_index(), 0)?;
                    left -= 1;
                }
            }
            self.queue.notify()?;
            if let Some(missing) = missing {
                return Ok(missing);
            }
            if !self.queue.want_kicks()? {
                return Ok(Transmitted::NoPacket);
            }
            if left == 0 {
                self.queue.kick_again();
                return Ok(Transmitted::NoPacket);
            }
        }
    }

    /// Sends a packet, or drops it if it is none. Otherwise says what is
    /// missing.
    fn send(
        &mut self,
        chain: &Chain,
        tap: BorrowedFd<'_>,
        limiter: &mut Option<RateLimiter>,
    ) -> Option<Transmitted> {
        if let Err(error) = self.gather(chain) {
            self.faults.report(&error);
            return None;
        }
        if limiter.as_mut().is_some_and(|limiter| !limiter.may_pass()) {
            return Some(Transmitted::Limited);
        }
        let length = self.buffers.length();
        while let Err(error) = self.buffers.write_to(tap, 0, usize::MAX) {
            match error.raw_os_error() {
                Some(libc::EAGAIN) => return Some(Transmitted::TapFull),
                Some(libc::EINTR) => continue,
                // The header or the packet makes no sense.
                Some(libc::EINVAL) => self.faults.report(&PacketError::Refused(error)),
                // Switched off, not attached, no memory: as with a cable that
                // is out.
                _ => log::debug!("a packet is lost: {error}"),
            }
            return None;
        }
        let packet = length - HEADER_LENGTH;
        if let Some(limiter) = limiter {
            limiter.charge(packet as u64);
        }
        self.counters.transmitted(packet);
        None
    }

    fn gather(&mut self, chain: &Chain) -> Result<(), PacketError> {
        self.buffers.clear();
        for descriptor in chain.clone() {
            if descriptor.is_write_only() {
                return Err(PacketError::Writable);
            }
            self.buffers
                .push(descriptor.addr(), descriptor.len() as usize)?;
        }
        match self.buffers.length() {
            HEADER_LENGTH..=MAX_PACKET => Ok(()),
            length => Err(PacketError::Length(length)),
        }
    }
}
