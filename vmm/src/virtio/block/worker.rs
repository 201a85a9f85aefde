//! What runs on the thread of one queue: takes requests, starts them, and
//! gives them back when they are done.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use event_manager::EventOps;
use vm_memory::GuestAddress;

use super::execute::{Disk, Plan, Transfer, write_status};
use super::request::{Kind, Request, Status, parse};
use super::wakeups::Wakeups;
use crate::memory::{IoRing, RingCompletion, RingOperation};
use crate::sandbox::bind_to_cpus;
use crate::sources::Sources;
use crate::virtio::rate_limit::{RateLimit, RateLimiter};
use crate::virtio::worker::{Service, ServiceError};
use crate::virtio::{Activation, QueueError, VirtQueue};

const REQUESTS: u32 = 0;
const COMPLETIONS: u32 = 1;
const LIMIT: u32 = 2;

/// Bytes that the requests of one queue that are under way move together,
/// unless a single one moves more: a reset waits for them.
const MAX_BYTES_IN_FLIGHT: u64 = 64 << 20;

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

impl Work {
    /// Bytes that it still moves.
    fn bytes(self) -> u64 {
        match self {
            Work::Read { length, .. } | Work::Write { length, .. } => length,
            Work::SyncWrite { .. } | Work::Flush => 0,
        }
    }
}

pub(super) struct BlockService {
    disk: Arc<Disk>,
    limit: Option<RateLimit>,
    affinity: Vec<usize>,
    /// While the device is not active. Made before the thread starts, whose
    /// filter lets it make none.
    ring: Option<IoRing>,
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
    /// Those of `pending`.
    bytes: u64,
    /// The queue may hold more, which has to wait for requests under way.
    full: bool,
    next: u64,
}

impl BlockService {
    pub(super) fn new(
        disk: Arc<Disk>,
        limit: Option<RateLimit>,
        affinity: Vec<usize>,
        ring: Option<IoRing>,
    ) -> Self {
        Self {
            disk,
            limit,
            affinity,
            ring,
            wakeups: None,
            active: None,
        }
    }
}

impl Service for BlockService {
    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        // A queue that the driver left out has nothing to serve.
        let Some(queue) = activation.queues.pop() else {
            return Ok(());
        };
        if let Err(error) = bind_to_cpus(&self.affinity) {
            self.disk.faults.report_host(&format_args!(
                "a thread cannot be bound to CPUs {:?}: {error}",
                self.affinity
            ));
        }
        self.wakeups.get_or_insert_with(Wakeups::new);
        let limiter = self.limit.clone().map(RateLimiter::new).transpose()?;
        self.active = Some(Active {
            queue,
            ring: self.ring.take(),
            limiter,
            pending: BTreeMap::new(),
            bytes: 0,
            full: false,
            next: 0,
        });
        Ok(())
    }

    fn attach(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        if let Some(ring) = &active.ring {
            ops.add_source(ring.event(), COMPLETIONS)?;
        }
        if let Some(limiter) = &active.limiter {
            ops.add_source(limiter, LIMIT)?;
        }
        active.queue.listen(ops, REQUESTS)
    }

    fn ready(&mut self, token: u32, _ops: &mut EventOps) -> Result<(), ServiceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        match token {
            COMPLETIONS => {
                active.finish(&self.disk)?;
                if active.full {
                    active.take_requests(&self.disk)?;
                }
            }
            LIMIT => {
                if let Some(limiter) = &mut active.limiter {
                    limiter.resume();
                }
                active.take_requests(&self.disk)?;
            }
            _ => {
                let taken = active.take_requests(&self.disk)?;
                if let Some(wakeups) = &mut self.wakeups {
                    wakeups.served(taken);
                }
            }
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), ServiceError> {
        match &mut self.active {
            Some(active) => active.finish_all(&self.disk),
            None => Ok(()),
        }
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        self.active.iter().map(|active| &active.queue).collect()
    }

    fn stop(&mut self) {
        let Some(mut ring) = self.active.take().and_then(|active| active.ring) else {
            return;
        };
        match ring.drain() {
            Ok(_) => self.ring = Some(ring),
            // The next driver has its requests done without a ring.
            Err(error) => log::error!("a disk's requests cannot be waited for: {error}"),
        }
    }
}

/// A ring for a queue of `depth` entries; none where the image or the host does
/// without.
pub(super) fn open_ring(depth: u16, disk: &Disk) -> Option<IoRing> {
    disk.image.sync_file()?;
    match IoRing::new(depth) {
        Ok(ring) => Some(ring),
        Err(error) => {
            disk.faults.report_host(&format_args!(
                "no io_uring, it is read and written one request at a time: {error}"
            ));
            None
        }
    }
}

impl Active {
    /// Starts what is in the queue, and says how many requests that were; one
    /// round of it at most, so that requests to stop are heard.
    fn take_requests(&mut self, disk: &Disk) -> Result<u16, QueueError> {
        // Nothing to read: somebody else has looked already.
        let _ = self.queue.kick().read();
        let mut left = self.queue.size();
        self.full = false;
        loop {
            self.queue.stop_kicks()?;
            while left > 0 && !self.queue.stop_flag().is_set() {
                if self.is_full() {
                    // Goes on when something is done; until then the driver
                    // need not kick.
                    self.full = true;
                    self.submit(disk)?;
                    self.queue.notify()?;
                    return Ok(self.queue.size() - left);
                }
                if let Some(limiter) = &mut self.limiter
                    && !limiter.may_pass()
                {
                    // Goes on when the limiter says so.
                    self.submit(disk)?;
                    self.queue.notify()?;
                    return Ok(self.queue.size() - left);
                }
                let Some(chain) = self.queue.pop()? else {
                    break;
                };
                left -= 1;
                let memory = Arc::clone(self.queue.memory());
                match parse(&chain, &memory) {
                    Ok(request) => self.begin(&request, disk)?,
                    Err(error) => {
                        disk.faults.report(&error);
                        self.queue.complete(chain.head_index(), 0)?;
                    }
                }
            }
            self.submit(disk)?;
            self.queue.notify()?;
            if self.queue.stop_flag().is_set() || !self.queue.want_kicks()? {
                return Ok(self.queue.size() - left);
            }
            if left == 0 {
                self.queue.kick_again();
                return Ok(self.queue.size() - left);
            }
        }
    }

    /// Whether nothing more may begin for now. A driver that offers a chain
    /// again before it was given back has no more requests under way than the
    /// queue has entries, either.
    fn is_full(&self) -> bool {
        self.pending.len() >= usize::from(self.queue.size()) || self.bytes >= MAX_BYTES_IN_FLIGHT
    }

    fn submit(&mut self, disk: &Disk) -> Result<(), QueueError> {
        let submitted = self.ring.as_mut().map_or(Ok(()), IoRing::submit);
        if let Err(error) = submitted {
            // Seen with a full completion queue: make room and let the next
            // round try again.
            disk.faults
                .report_host(&format_args!("requests are delayed: {error}"));
            self.finish(disk)?;
            self.queue.kick_again();
        }
        Ok(())
    }

    fn begin(&mut self, request: &Request, disk: &Disk) -> Result<(), QueueError> {
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
        let stop = self.queue.stop_flag().clone();
        match disk.plan(&request.kind, &memory, &stop) {
            Plan::Done(status, written) => self.end(disk, &pending, status, written),
            // It was popped last, so it is the next one again.
            Plan::Unfinished => {
                self.queue.push_back();
                Ok(())
            }
            Plan::Transfer(transfer) => {
                let Some(transfer) = self.push(disk, transfer, &pending) else {
                    return Ok(());
                };
                let result = disk.perform(&transfer);
                self.end_transfer(disk, &pending, result)
            }
        }
    }

    /// Gives a transfer to the ring; gives it back if that cannot take it.
    fn push(&mut self, disk: &Disk, transfer: Transfer, pending: &Pending) -> Option<Transfer> {
        let Some(ring) = &mut self.ring else {
            return Some(transfer);
        };
        let file = match &transfer {
            Transfer::Read(buffers, offset) | Transfer::Write(buffers, offset) => {
                disk.image.plain_file(buffers, *offset)
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
                self.bytes += pending.work.bytes();
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
    fn finish(&mut self, disk: &Disk) -> Result<(), QueueError> {
        match self.ring.as_mut().map(IoRing::completed) {
            Some(done) => self.give_back(done, disk),
            None => Ok(()),
        }
    }

    /// Waits for what is under way, and gives it back.
    fn finish_all(&mut self, disk: &Disk) -> Result<(), ServiceError> {
        while !self.pending.is_empty()
            && let Some(ring) = &mut self.ring
        {
            // A write that has to become durable goes to the ring once more.
            let done = ring.drain()?;
            self.give_back(done, disk)?;
        }
        Ok(())
    }

    fn give_back(&mut self, done: Vec<RingCompletion>, disk: &Disk) -> Result<(), QueueError> {
        for completion in done {
            let Some(mut pending) = self.pending.remove(&completion.token) else {
                continue;
            };
            self.bytes -= pending.work.bytes();
            let result = finish_short_transfer(disk, pending.work, completion);
            if let (Work::Write { length, .. }, Ok(())) = (pending.work, &result)
                && !disk.config.writeback()
            {
                pending.work = Work::SyncWrite { length };
                if self.push(disk, Transfer::Flush, &pending).is_none() {
                    continue;
                }
                let result = disk.perform(&Transfer::Flush);
                self.end_transfer(disk, &pending, result)?;
                continue;
            }
            self.end_transfer(disk, &pending, result)?;
        }
        if let Some(ring) = &mut self.ring
            && let Err(error) = ring.submit()
        {
            disk.faults
                .report_host(&format_args!("requests are delayed: {error}"));
            self.queue.kick_again();
        }
        self.queue.notify()
    }

    fn end_transfer(
        &mut self,
        disk: &Disk,
        pending: &Pending,
        result: io::Result<()>,
    ) -> Result<(), QueueError> {
        if let Err(error) = result {
            disk.count_error(&error);
            return self.end(disk, pending, Status::Failed, 0);
        }
        let took = pending.since.elapsed();
        let written = match pending.work {
            Work::Read { length, .. } => {
                disk.counters.count_read(length, took);
                // No request is longer than the field can say.
                length as u32
            }
            Work::Write { length, .. } | Work::SyncWrite { length } => {
                disk.counters.count_write(length, took);
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
fn finish_short_transfer(disk: &Disk, work: Work, completion: RingCompletion) -> io::Result<()> {
    let moved = completion.result?;
    let (Some(buffers), Work::Read { offset, .. } | Work::Write { offset, .. }) =
        (completion.buffers, work)
    else {
        return Ok(());
    };
    if moved == buffers.length() {
        return Ok(());
    }
    let Some(file) = disk.image.plain_file(&buffers, offset) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    match work {
        Work::Read { .. } => buffers.read_from(file.as_fd(), offset, moved),
        _ => buffers.write_to(file.as_fd(), offset, moved),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use virtio_bindings::virtio_blk as bits;

    use super::super::config::BlkConfigSpace;
    use super::super::counters::BlockCounters;
    use super::super::image::{Image, ImageFormat, ImageOptions, LockRange};
    use super::super::request::Extent;
    use super::*;
    use crate::virtio::testing::{Buffer, Driver};
    use crate::virtio::{GuestFaults, StopFlag};

    const QUEUE_SIZE: u16 = 16;

    fn disk(size: u64) -> (tempfile::NamedTempFile, Disk) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        let options = ImageOptions {
            path: file.path().to_owned(),
            format: ImageFormat::Raw,
            read_only: false,
            direct: false,
            sparse: true,
            backing_files: false,
            lock: LockRange::Bytes,
        };
        let image = Image::open(&options).unwrap();
        let config = BlkConfigSpace::new(&image, 1, QUEUE_SIZE);
        let disk = Disk {
            image,
            config,
            serial: String::new(),
            faults: Arc::new(GuestFaults::new("disk")),
            counters: Arc::new(BlockCounters::new()),
        };
        (file, disk)
    }

    #[test]
    fn chains_that_are_offered_again_do_not_add_up() {
        const LENGTH: u32 = 8 << 20;
        let (_file, disk) = disk(16 << 20);
        let mut driver = Driver::new(QUEUE_SIZE);
        let mut header = bits::VIRTIO_BLK_T_OUT.to_le_bytes().to_vec();
        header.resize(16, 0);
        driver.put(0, &header);
        let head = driver.offer(&[
            Buffer::readable(0, 16),
            Buffer::readable(4096, LENGTH),
            Buffer::writable(512, 1),
        ]);
        let mut active = Active {
            queue: driver.queue(),
            ring: open_ring(QUEUE_SIZE, &disk),
            limiter: None,
            pending: BTreeMap::new(),
            bytes: 0,
            full: false,
            next: 0,
        };
        let (mut offered, mut times_full) = (1, 0);
        for _ in 0..100 {
            if active.full {
                times_full += 1;
                std::thread::sleep(Duration::from_millis(1));
                active.finish(&disk).unwrap();
            } else if offered < 64 {
                for _ in 0..8 {
                    driver.offer_head(head);
                    offered += 1;
                }
            }
            active.take_requests(&disk).unwrap();
            assert!(active.pending.len() <= usize::from(QUEUE_SIZE));
            assert!(active.bytes < MAX_BYTES_IN_FLIGHT + u64::from(LENGTH));
        }
        assert!(active.ring.is_none() || times_full > 0);
        let deadline = Instant::now() + Duration::from_secs(60);
        while driver.used().len() < offered {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
            active.finish(&disk).unwrap();
            active.take_requests(&disk).unwrap();
        }
        assert_eq!((active.pending.len(), active.bytes), (0, 0));
    }

    #[test]
    fn a_long_discard_ends_between_pieces_when_the_thread_is_to_stop() {
        let (_file, disk) = disk(16 << 30);
        let driver = Driver::new(QUEUE_SIZE);
        let stop = StopFlag::default();
        let extents = vec![
            Extent {
                offset: 0,
                length: 2 << 30,
                unmap: false,
            };
            16
        ];
        for kind in [Kind::Discard(extents.clone()), Kind::WriteZeroes(extents)] {
            for stopped in [false, true] {
                stop.clear();
                if stopped {
                    stop.request_pause();
                }
                match (stopped, disk.plan(&kind, driver.memory(), &stop)) {
                    (false, Plan::Done(Status::Ok, 0)) | (true, Plan::Unfinished) => {}
                    _ => panic!("done only if it was not stopped"),
                }
            }
        }
        assert_eq!(disk.faults.count(), 0);
    }
}
