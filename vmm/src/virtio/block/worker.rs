//! What runs on the thread of one queue: takes requests, starts them, and
//! gives them back when they are done.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use api_client::inspect::InspectNode;
use event_manager::EventOps;

use super::execute::{Disk, Plan, write_status};
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

pub(super) struct BlockService {
    disk: Arc<Disk>,
    limit: Option<RateLimit>,
    affinity: Vec<usize>,
    /// While the device is not active. Made before the thread starts, whose
    /// filter lets it make none.
    ring: Option<IoRing<Request>>,
    /// From the first activation on: it is the thread's, not the queue's.
    wakeups: Option<Wakeups>,
    active: Option<Active>,
}

/// What exists while the device is active.
struct Active {
    queue: VirtQueue,
    ring: Option<IoRing<Request>>,
    limiter: Option<RateLimiter>,
    /// Those that the ring moves.
    bytes: u64,
    /// The queue may hold more, which has to wait for requests under way.
    full: bool,
}

impl BlockService {
    pub(super) fn new(
        disk: Arc<Disk>,
        limit: Option<RateLimit>,
        affinity: Vec<usize>,
        ring: Option<IoRing<Request>>,
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
            bytes: 0,
            full: false,
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

    fn inspect(&self, node: &mut InspectNode) {
        let ring = self.active.as_ref().and_then(|active| active.ring.as_ref());
        if let (Some(active), Some(ring)) = (&self.active, ring) {
            node.set("ring_requests", ring.in_flight() as u64);
            node.set("ring_bytes", active.bytes);
        }
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
pub(super) fn open_ring(depth: u16, disk: &Disk) -> Option<IoRing<Request>> {
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
                    Ok(request) => self.begin(request, disk)?,
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
        self.in_flight() >= usize::from(self.queue.size()) || self.bytes >= MAX_BYTES_IN_FLIGHT
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

    fn in_flight(&self) -> usize {
        self.ring.as_ref().map_or(0, IoRing::in_flight)
    }

    fn begin(&mut self, request: Request, disk: &Disk) -> Result<(), QueueError> {
        if let Some(limiter) = &self.limiter {
            limiter.charge(request.kind.length());
        }
        let memory = Arc::clone(self.queue.memory());
        let stop = self.queue.stop_flag().clone();
        match disk.plan(&request.kind, &memory, &stop) {
            Plan::Done(status, written) => self.end(disk, &request, status, written),
            Plan::Written(result) => self.end_transfer(disk, &request, result),
            // It was popped last, so it is the next one again.
            Plan::Unfinished => {
                self.queue.push_back();
                Ok(())
            }
            Plan::Transfer(operation) => self.transfer(disk, request, operation),
        }
    }

    /// Gives an operation to the ring, or carries it out if that cannot take it.
    fn transfer(
        &mut self,
        disk: &Disk,
        request: Request,
        operation: RingOperation,
    ) -> Result<(), QueueError> {
        let length = operation.length() as u64;
        let (request, operation) = match (&mut self.ring, disk.file_for(&operation)) {
            (Some(ring), Some(file)) => match ring.push(request, file, operation) {
                Ok(()) => {
                    self.bytes += length;
                    return Ok(());
                }
                Err(refused) => refused,
            },
            _ => (request, operation),
        };
        let result = disk.perform(&operation);
        self.end_transfer(disk, &request, result)
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
        while self.in_flight() > 0
            && let Some(ring) = &mut self.ring
        {
            // A write that has to become durable goes to the ring once more.
            let done = ring.drain()?;
            self.give_back(done, disk)?;
        }
        Ok(())
    }

    fn give_back(
        &mut self,
        done: Vec<RingCompletion<Request>>,
        disk: &Disk,
    ) -> Result<(), QueueError> {
        for completion in done {
            let RingCompletion {
                request,
                operation,
                result,
            } = completion;
            self.bytes -= operation.length() as u64;
            let result = result.and_then(|moved| finish_short_transfer(disk, &operation, moved));
            let is_write = matches!(operation, RingOperation::Write(..));
            if is_write && result.is_ok() && !disk.config.writeback() {
                self.transfer(disk, request, RingOperation::Sync)?;
            } else {
                self.end_transfer(disk, &request, result)?;
            }
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
        request: &Request,
        result: io::Result<()>,
    ) -> Result<(), QueueError> {
        if let Err(error) = result {
            disk.count_error(&error);
            return self.end(disk, request, Status::Failed, 0);
        }
        let took = request.since.elapsed();
        let written = match request.kind {
            Kind::Read { length, .. } => {
                disk.counters.count_read(length, took);
                // No request is longer than the field can say.
                length as u32
            }
            Kind::Write { length, .. } => {
                disk.counters.count_write(length, took);
                0
            }
            _ => 0,
        };
        self.end(disk, request, Status::Ok, written)
    }

    fn end(
        &mut self,
        disk: &Disk,
        request: &Request,
        status: Status,
        written: u32,
    ) -> Result<(), QueueError> {
        let told = write_status(self.queue.memory(), request.status, status);
        if let Err(error) = &told {
            disk.faults.report(error);
        }
        let status_byte = u32::from(told.is_ok());
        self.queue.complete(request.head, written + status_byte)
    }
}

/// Moves the rest of what an operation of the ring has not moved.
fn finish_short_transfer(disk: &Disk, operation: &RingOperation, moved: usize) -> io::Result<()> {
    let (RingOperation::Read(buffers, offset) | RingOperation::Write(buffers, offset)) = operation
    else {
        return Ok(());
    };
    if moved == buffers.length() {
        return Ok(());
    }
    let Some(file) = disk.image.plain_file(buffers, *offset) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    match operation {
        RingOperation::Read(..) => buffers.read_from(file.as_fd(), *offset, moved),
        _ => buffers.write_to(file.as_fd(), *offset, moved),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

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
            bytes: 0,
            full: false,
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
            assert!(active.in_flight() <= usize::from(QUEUE_SIZE));
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
        assert_eq!((active.in_flight(), active.bytes), (0, 0));
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
