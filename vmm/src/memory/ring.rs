//! Asynchronous file I/O on guest memory through io_uring. The ring owns what
//! the kernel may still use: buffers and files come back with the completion.
//!
//! A filter of system calls does not see what a ring is asked for, so the ring
//! itself takes nothing but reading, writing and syncing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::transfer::{GuestBuffers, MAX_BUFFERS};

/// What to do with a file.
pub enum RingOperation {
    /// Read into buffers from an offset.
    Read(GuestBuffers, u64),
    /// Write buffers to an offset.
    Write(GuestBuffers, u64),
    /// Make everything written so far durable.
    Sync,
}

impl RingOperation {
    /// Bytes that it is to move.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            RingOperation::Read(buffers, _) | RingOperation::Write(buffers, _) => buffers.length(),
            RingOperation::Sync => 0,
        }
    }
}

/// What was done.
pub struct RingCompletion<T> {
    /// What it was done for.
    pub request: T,
    /// What was to be done.
    pub operation: RingOperation,
    /// Bytes that moved.
    pub result: io::Result<usize>,
}

struct InFlight<T> {
    request: T,
    operation: RingOperation,
    _file: Arc<File>,
}

/// A ring that carries out operations for requests, which it keeps meanwhile.
/// Belongs to one thread.
pub struct IoRing<T> {
    ring: IoUring,
    event: EventFd,
    /// By the number that the kernel gives back.
    flights: Vec<Option<InFlight<T>>>,
    free: Vec<usize>,
    unsubmitted: bool,
}

impl<T> IoRing<T> {
    /// A ring for about `depth` operations at a time.
    ///
    /// # Errors
    /// The host has no io_uring, or one that cannot be restricted (Linux before
    /// 5.10).
    pub fn new(depth: u16) -> io::Result<Self> {
        let entries = u32::from(depth).next_power_of_two();
        let ring = IoUring::builder().setup_r_disabled().build(entries)?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        // Nothing is registered from here on, and no entry has flags.
        ring.submitter().register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
        ])?;
        ring.submitter().register_enable_rings()?;
        Ok(Self {
            ring,
            event,
            flights: Vec::new(),
            free: Vec::new(),
            unsubmitted: false,
        })
    }

    /// Becomes readable when operations have completed.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// How many operations are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Starts an operation for a request with the next [`submit`](Self::submit).
    /// Gives both back if the ring cannot take it now.
    pub fn push(
        &mut self,
        request: T,
        file: &Arc<File>,
        operation: RingOperation,
    ) -> Result<(), (T, RingOperation)> {
        let fd = types::Fd(file.as_raw_fd());
        if let RingOperation::Read(buffers, _) | RingOperation::Write(buffers, _) = &operation
            && buffers.vectors().len() > MAX_BUFFERS
        {
            return Err((request, operation));
        }
        if self.ring.submission().is_full()
            && (self.submit().is_err() || self.ring.submission().is_full())
        {
            return Err((request, operation));
        }
        let entry = match &operation {
            RingOperation::Read(buffers, offset) => {
                let vectors = buffers.vectors();
                opcode::Readv::new(fd, vectors.as_ptr(), vectors.len() as u32)
                    .offset(*offset)
                    .build()
            }
            RingOperation::Write(buffers, offset) => {
                let vectors = buffers.vectors();
                opcode::Writev::new(fd, vectors.as_ptr(), vectors.len() as u32)
                    .offset(*offset)
                    .build()
            }
            RingOperation::Sync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        };
        let number = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        // Moving the buffers does not move the array of vectors, which is on
        // the heap.
        self.flights[number] = Some(InFlight {
            request,
            operation,
            _file: Arc::clone(file),
        });
        self.enter(&entry.user_data(number as u64));
        Ok(())
    }

    fn enter(&mut self, entry: &squeue::Entry) {
        // SAFETY:
        // - The vectors and the memory they point to belong to `flights` until
        //   the kernel reports the operation as completed; `drop` waits for
        //   that.
        // - The descriptor belongs to the file in the same place.
        let pushed = unsafe { self.ring.submission().push(entry) };
        debug_assert!(pushed.is_ok(), "there was room");
        self.unsubmitted = true;
    }

    /// Hands everything that was pushed to the kernel.
    pub fn submit(&mut self) -> io::Result<()> {
        if self.unsubmitted {
            loop {
                match self.ring.submit() {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                    Ok(_) => break,
                }
            }
            self.unsubmitted = false;
        }
        Ok(())
    }

    /// Takes what has completed.
    pub fn completed(&mut self) -> Vec<RingCompletion<T>> {
        // Nothing to read: nothing new, or looked at already.
        let _ = self.event.read();
        let mut done = Vec::new();
        for entry in self.ring.completion() {
            let number = entry.user_data() as usize;
            let Some(flight) = self.flights.get_mut(number).and_then(Option::take) else {
                continue;
            };
            self.free.push(number);
            let result = entry.result();
            done.push(RingCompletion {
                request: flight.request,
                operation: flight.operation,
                result: usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)),
            });
        }
        done
    }

    /// Waits for everything that is under way.
    pub fn drain(&mut self) -> io::Result<Vec<RingCompletion<T>>> {
        let mut done = Vec::new();
        while self.in_flight() > 0 {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => drop(other?),
            }
            self.unsubmitted = false;
            done.append(&mut self.completed());
        }
        Ok(done)
    }
}

impl<T> Drop for IoRing<T> {
    fn drop(&mut self) {
        if let Err(error) = self.drain() {
            // The kernel may still use what is under way: it has to stay.
            log::error!("an I/O ring cannot be emptied: {error}");
            std::mem::forget(std::mem::take(&mut self.flights));
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory::{GuestRam, plain};

    fn ring() -> Option<IoRing<u64>> {
        match IoRing::new(4) {
            Ok(ring) => Some(ring),
            Err(error) => {
                eprintln!("skipped: this host has no io_uring: {error}");
                None
            }
        }
    }

    fn buffers(memory: &Arc<GuestRam>, at: u64, fill: u8) -> GuestBuffers {
        let ranges = [(GuestAddress(at), 100), (GuestAddress(at + 1000), 412)];
        let buffers = GuestBuffers::new(memory, &ranges).unwrap();
        buffers.copy_from(&[fill; 512]);
        buffers
    }

    #[test]
    fn more_operations_than_the_ring_has_entries_complete() {
        let Some(mut ring) = ring() else { return };
        let memory = Arc::new(plain(16 << 20));
        let file = Arc::new(tempfile::tempfile().unwrap());
        for n in 0..20u64 {
            let source = buffers(&memory, n * 4096, n as u8 + 1);
            let pushed = ring.push(n, &file, RingOperation::Write(source, n * 512));
            assert!(pushed.is_ok());
        }
        let done = ring.drain().unwrap();
        assert!(done.iter().all(|done| matches!(done.result, Ok(512))));
        let mut requests: Vec<u64> = done.iter().map(|done| done.request).collect();
        requests.sort_unstable();
        assert_eq!(requests, (0..20).collect::<Vec<_>>());
        assert!(ring.push(7, &file, RingOperation::Sync).is_ok());
        let target = buffers(&memory, 0, 0);
        assert!(
            ring.push(8, &file, RingOperation::Read(target, 19 * 512))
                .is_ok()
        );
        let mut done = ring.drain().unwrap();
        done.sort_by_key(|done| done.request);
        let mut bytes = [0; 512];
        match &done[1].operation {
            RingOperation::Read(buffers, _) => buffers.copy_to(&mut bytes),
            _ => panic!("another operation came back"),
        }
        assert_eq!(bytes, [20; 512]);
    }

    #[test]
    fn what_is_not_a_disks_business_is_refused() {
        let Some(mut ring) = ring() else { return };
        let path = c"/dev/null".as_ptr();
        let here = types::Fd(libc::AT_FDCWD);
        let sync = opcode::Fsync::new(types::Fd(0)).build();
        let entries = [
            opcode::Nop::new().build(),
            opcode::OpenAt::new(here, path).build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
            sync.flags(squeue::Flags::ASYNC),
        ];
        for entry in entries {
            // SAFETY: the path is a constant, and no other entry has pointers.
            unsafe { ring.ring.submission().push(&entry) }.unwrap();
            ring.ring.submit_and_wait(1).unwrap();
            let result = ring.ring.completion().next().unwrap().result();
            assert_eq!(result, -libc::EACCES);
        }
        let refused = ring
            .ring
            .submitter()
            .register_eventfd(ring.event.as_raw_fd());
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn a_failure_is_reported_with_the_request() {
        let Some(mut ring) = ring() else { return };
        let memory = Arc::new(plain(16 << 20));
        let file = Arc::new(File::open("/dev/null").unwrap());
        let source = buffers(&memory, 0, 1);
        assert!(ring.push(5, &file, RingOperation::Write(source, 0)).is_ok());
        let done = ring.drain().unwrap();
        let error = done[0].result.as_ref().unwrap_err();
        assert_eq!(
            (done[0].request, error.raw_os_error()),
            (5, Some(libc::EBADF))
        );
    }
}
