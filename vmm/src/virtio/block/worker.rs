//! What runs on the thread of one queue: takes requests, starts them, and
//! gives them back when they are done.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestAddress;

use super::counters::BlockCounters;
use super::execute::{Disk, Plan, Transfer, write_status};
use super::request::{Kind, Request, Status, parse};
use super::wakeups::Wakeups;
use crate::memory::{IoRing, RingCompletion, RingOperation};
use crate::sandbox::bind_to_cpus;
use crate::virtio::rate_limit::{RateLimit, RateLimiter};
use crate::virtio::worker::{Poll, Service, ServiceError};
use crate::virtio::{Activation, QueueError, VirtQueue};

const REQUESTS: u64 = 0;
const COMPLETIONS: u64 = 1;
const LIMIT: u64 = 2;

/// A request that the ring works on.
struct Pending {
    head: u16,
    status: GuestAddress,
    since: Instant,
    work: Work,
}

#[derive(Clone, Copy)]
enum Work {
    Read {
        offset: u64,
        length: u64,
    },
    Write {
        offset: u64,
        length: u64,
    },
    /// The write is done and has to become durable.
    SyncWrite {
        length: u64,
    },
    Flush,
}

pub(super) struct BlockService {
    disk: Arc<Disk>,
    counters: Arc<BlockCounters>,
    limit: Option<RateLimit>,
    affinity: Vec<usize>,
    use_ring: bool,
    /// From the first activation on: it is the thread's, not the queue's.
    wakeups: Option<Wakeups>,
    active: Option<Active>,
}

/// What exists while the device is active.
struct Active {
    queue: VirtQueue,
    ring: Option<IoRing>,
    limiter: Option<RateLimiter>,
    pending: BTreeMap<u64, Pending>,
    next: u64,
}

impl BlockService {
    pub(super) fn new(
        disk: Arc<Disk>,
        counters: Arc<BlockCounters>,
        limit: Option<RateLimit>,
        affinity: Vec<usize>,
        use_ring: bool,
    ) -> Self {
        Self {
            disk,
            counters,
            limit,
            affinity,
            use_ring,
            wakeups: None,
            active: None,
        }
    }
}

impl Service for BlockService {
    fn start(&mut self, mut activation: Activation, poll: &Poll) -> io::Result<()> {
        // A queue that the driver left out has nothing to serve.
        let Some(queue) = activation.queues.pop() else {
            return Ok(());
        };
        if let Err(error) = bind_to_cpus(&self.affinity) {
            log::warn!(
                "a disk's thread cannot be bound to CPUs {:?}: {error}",
                self.affinity
            );
        }
        self.wakeups.get_or_insert_with(Wakeups::new);
        poll.add(queue.kick(), REQUESTS)?;
        let ring = if self.use_ring && self.disk.image.sync_file().is_some() {
            open_ring(queue.size())
        } else {
            None
        };
        if let Some(ring) = &ring {
            poll.add(ring.event(), COMPLETIONS)?;
        }
        let limiter = self.limit.clone().map(RateLimiter::new).transpose()?;
        if let Some(limiter) = &limiter {
            poll.add(limiter, LIMIT)?;
        }
        self.active = Some(Active {
            queue,
            ring,
            limiter,
            pending: BTreeMap::new(),
            next: 0,
        });
        Ok(())
    }

    fn ready(&mut self, token: u64, _poll: &Poll) -> Result<(), ServiceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        match token {
            COMPLETIONS => active.finish(&self.disk, &self.counters)?,
            LIMIT => {
                if let Some(limiter) = &mut active.limiter {
                    limiter.resume();
                }
                active.take_requests(&self.disk, &self.counters)?;
            }
            _ => {
                let taken = active.take_requests(&self.disk, &self.counters)?;
                if let Some(wakeups) = &mut self.wakeups {
                    wakeups.served(taken);
                }
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut active) = self.active.take()
            && let Some(ring) = &mut active.ring
            && let Err(error) = ring.drain()
        {
            log::error!("a disk's requests cannot be waited for: {error}");
        }
    }
}

/// A ring, or none where the host forbids it.
fn open_ring(depth: u16) -> Option<IoRing> {
    match IoRing::new(depth) {
        Ok(ring) => Some(ring),
        Err(error) => {
            log::info!("no io_uring, disks are read and written one request at a time: {error}");
            None
        }
    }
}

impl Active {
    /// Starts what is in the queue, and says how many requests that were; one
    /// round of it at most, so that requests to stop are heard.
    fn take_requests(&mut self, disk: &Disk, counters: &BlockCounters) -> Result<u16, QueueError> {
        // Nothing to read: somebody else has looked already.
        let _ = self.queue.kick().read();
        let mut left = self.queue.size();
        loop {
            self.queue.stop_kicks()?;
            while left > 0 {
                if let Some(limiter) = &mut self.limiter
                    && !limiter.may_pass()
                {
                    // Goes on when the limiter says so.
                    self.submit(disk, counters)?;
                    self.queue.notify()?;
                    return Ok(self.queue.size() - left);
                }
                let Some(chain) = self.queue.pop()? else {
                    break;
                };
                left -= 1;
                let memory = Arc::clone(self.queue.memory());
                match parse(&chain, &memory) {
                    Ok(request) => self.begin(&request, disk, counters)?,
                    Err(error) => {
                        disk.faults.report(&error);
                        self.queue.complete(chain.head_index(), 0)?;
                    }
                }
            }
            self.submit(disk, counters)?;
            self.queue.notify()?;
            if !self.queue.want_kicks()? {
                return Ok(self.queue.size() - left);
            }
            if left == 0 {
                // A full counter kicks as well.
                let _ = self.queue.kick().write(1);
                return Ok(self.queue.size() - left);
            }
        }
    }

    fn submit(&mut self, disk: &Disk, counters: &BlockCounters) -> Result<(), QueueError> {
        let submitted = self.ring.as_mut().map_or(Ok(()), IoRing::submit);
        if let Err(error) = submitted {
            // Seen with a full completion queue: make room and let the next
            // round try again.
            log::warn!("a disk's requests are delayed: {error}");
            self.finish(disk, counters)?;
            let _ = self.queue.kick().write(1);
        }
        Ok(())
    }

    fn begin(
        &mut self,
        request: &Request,
        disk: &Disk,
        counters: &BlockCounters,
    ) -> Result<(), QueueError> {
        let since = Instant::now();
        let (work, length) = match request.kind {
            Kind::Read { offset, length, .. } => (Work::Read { offset, length }, length),
            Kind::Write { offset, length, .. } => (Work::Write { offset, length }, length),
            _ => (Work::Flush, 0),
        };
        if let Some(limiter) = &self.limiter {
            limiter.charge(length);
        }
        let pending = Pending {
            head: request.head,
            status: request.status,
            since,
            work,
        };
        let memory = Arc::clone(self.queue.memory());
        match disk.plan(&request.kind, &memory) {
            Plan::Done(status, written) => self.end(disk, &pending, status, written),
            Plan::Transfer(transfer) => {
                let Some(transfer) = self.push(disk, transfer, &pending) else {
                    return Ok(());
                };
                let result = disk.perform(&transfer);
                self.end_transfer(disk, counters, &pending, result)
            }
        }
    }

    /// Gives a transfer to the ring; gives it back if that cannot take it.
    fn push(&mut self, disk: &Disk, transfer: Transfer, pending: &Pending) -> Option<Transfer> {
        let Some(ring) = &mut self.ring else {
            return Some(transfer);
        };
        let file = match &transfer {
            Transfer::Read(buffers, _) | Transfer::Write(buffers, _) => {
                disk.image.plain_file(buffers)
            }
            Transfer::WriteChecked(..) => None,
            Transfer::Flush if disk.image.geometry().read_only => None,
            Transfer::Flush => disk.image.sync_file(),
        };
        let Some(file) = file else {
            return Some(transfer);
        };
        let operation = match transfer {
            Transfer::Read(buffers, offset) => RingOperation::Read(buffers, offset),
            Transfer::Write(buffers, offset) => RingOperation::Write(buffers, offset),
            Transfer::WriteChecked(..) => return Some(transfer),
            Transfer::Flush => RingOperation::Sync,
        };
        let token = self.next;
        match ring.push(token, file, operation) {
            Ok(()) => {
                self.next += 1;
                self.pending.insert(
                    token,
                    Pending {
                        head: pending.head,
                        status: pending.status,
                        since: pending.since,
                        work: pending.work,
                    },
                );
                None
            }
            Err(RingOperation::Read(buffers, offset)) => Some(Transfer::Read(buffers, offset)),
            Err(RingOperation::Write(buffers, offset)) => Some(Transfer::Write(buffers, offset)),
            Err(RingOperation::Sync) => Some(Transfer::Flush),
        }
    }

    /// Gives back what the ring has done.
    fn finish(&mut self, disk: &Disk, counters: &BlockCounters) -> Result<(), QueueError> {
        let done = match &mut self.ring {
            Some(ring) => ring.completed(),
            None => return Ok(()),
        };
        for completion in done {
            let Some(mut pending) = self.pending.remove(&completion.token) else {
                continue;
            };
            let result = settle(disk, pending.work, completion);
            if let (Work::Write { length, .. }, Ok(())) = (pending.work, &result)
                && !disk.config.writeback()
            {
                pending.work = Work::SyncWrite { length };
                if self.push(disk, Transfer::Flush, &pending).is_none() {
                    continue;
                }
                let result = disk.perform(&Transfer::Flush);
                self.end_transfer(disk, counters, &pending, result)?;
                continue;
            }
            self.end_transfer(disk, counters, &pending, result)?;
        }
        if let Some(ring) = &mut self.ring
            && let Err(error) = ring.submit()
        {
            log::warn!("a disk's requests are delayed: {error}");
            let _ = self.queue.kick().write(1);
        }
        self.queue.notify()
    }

    fn end_transfer(
        &mut self,
        disk: &Disk,
        counters: &BlockCounters,
        pending: &Pending,
        result: io::Result<()>,
    ) -> Result<(), QueueError> {
        if let Err(error) = result {
            log::warn!("a disk fails: {error}");
            return self.end(disk, pending, Status::Failed, 0);
        }
        let took = pending.since.elapsed();
        let written = match pending.work {
            Work::Read { length, .. } => {
                counters.count_read(length, took);
                // No request is longer than the field can say.
                length as u32
            }
            Work::Write { length, .. } | Work::SyncWrite { length } => {
                counters.count_write(length, took);
                0
            }
            Work::Flush => 0,
        };
        self.end(disk, pending, Status::Ok, written)
    }

    fn end(
        &mut self,
        disk: &Disk,
        pending: &Pending,
        status: Status,
        written: u32,
    ) -> Result<(), QueueError> {
        let told = write_status(self.queue.memory(), pending.status, status);
        if let Err(error) = &told {
            disk.faults.report(error);
        }
        let status_byte = u32::from(told.is_ok());
        self.queue.complete(pending.head, written + status_byte)
    }
}

/// The outcome of an operation of the ring. One that moved less than it should
/// have is finished here.
fn settle(disk: &Disk, work: Work, completion: RingCompletion) -> io::Result<()> {
    let moved = completion.result?;
    let Some(buffers) = completion.buffers else {
        return Ok(());
    };
    if moved == buffers.length() {
        return Ok(());
    }
    let Some(file) = disk.image.plain_file(&buffers) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    match work {
        Work::Read { offset, .. } => buffers.read_from(file.as_fd(), offset, moved),
        Work::Write { offset, .. } => buffers.write_to(file.as_fd(), offset, moved),
        Work::SyncWrite { .. } | Work::Flush => Ok(()),
    }
}
