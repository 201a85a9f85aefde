//! Carries out requests on an image: at once, or through the ring.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::Bytes;

use super::SECTOR;
use super::config::BlkConfigSpace;
use super::counters::BlockCounters;
use super::image::Image;
use super::request::{Extent, Kind, Range, Status};
use crate::memory::{AlignedBuffer, GuestBuffers, GuestRam, RingOperation};
use crate::virtio::{GuestFaults, StopFlag};

/// Discards and writes of zeroes are done in pieces of this size, between
/// which the thread can be stopped and others get their turn.
const PIECE: u64 = 64 << 20;
/// Bytes of a disk's serial number.
const ID_LENGTH: usize = 20;

/// A disk, as the threads of its queues share it.
pub(super) struct Disk {
    pub(super) image: Image,
    pub(super) config: BlkConfigSpace,
    pub(super) serial: String,
    pub(super) faults: Arc<GuestFaults>,
    pub(super) counters: Arc<BlockCounters>,
}

/// What a request comes to.
pub(super) enum Plan {
    /// To be done by file I/O, in memory that is the guest's.
    Transfer(RingOperation),
    /// A write of bytes as they were when they were checked, with its outcome.
    Written(io::Result<()>),
    /// Done, with so many bytes written to the driver's buffers.
    Done(Status, u32),
    /// Begun, and to be done again from the beginning: the thread is to stop.
    Unfinished,
}

impl Disk {
    /// Checks a request against the disk, and does what needs no file I/O
    /// that could be left to the ring.
    pub(super) fn plan(&self, kind: &Kind, memory: &Arc<GuestRam>, stop: &StopFlag) -> Plan {
        let geometry = self.image.geometry();
        match kind {
            Kind::Read {
                offset,
                data,
                length,
            } => self.transfer(*offset, *length, data, memory, RingOperation::Read),
            Kind::Write {
                offset,
                data,
                length,
            } => {
                if geometry.read_only {
                    return self.refuse("a write to a read-only disk");
                }
                let plan = self.transfer(*offset, *length, data, memory, RingOperation::Write);
                match plan {
                    Plan::Transfer(RingOperation::Write(buffers, offset))
                        if self.image.touches_mark(offset, *length) =>
                    {
                        self.checked_write(&buffers, offset)
                    }
                    plan => plan,
                }
            }
            Kind::Flush => Plan::Transfer(RingOperation::Sync),
            Kind::GetId { data } => self.get_id(data, memory),
            Kind::Discard(extents) if geometry.sparse => self.extents(extents, stop, |extent| {
                self.image.discard(extent.offset, extent.length)
            }),
            Kind::Discard(_) => Plan::Done(Status::Unsupported, 0),
            Kind::WriteZeroes(extents) => self.extents(extents, stop, |extent| {
                self.image
                    .write_zeroes(extent.offset, extent.length, extent.unmap)
            }),
            Kind::Other(number) => {
                self.faults
                    .report(&format_args!("request {number} is not known"));
                Plan::Done(Status::Unsupported, 0)
            }
            Kind::Malformed(why) => self.refuse(why),
        }
    }

    fn refuse(&self, why: &str) -> Plan {
        self.faults.report(&why);
        Plan::Done(Status::Failed, 0)
    }

    fn fail(&self, error: &io::Error) -> Plan {
        self.count_error(error);
        Plan::Done(Status::Failed, 0)
    }

    /// Counts and logs that the host did not do what a request takes.
    pub(super) fn count_error(&self, error: &io::Error) {
        let count = self.counters.count_error();
        self.faults
            .report_host(&format_args!("the host's I/O fails ({count}): {error}"));
    }

    fn within(&self, offset: u64, length: u64) -> bool {
        let size = self.image.size() / SECTOR * SECTOR;
        offset.checked_add(length).is_some_and(|end| end <= size)
    }

    fn transfer(
        &self,
        offset: u64,
        length: u64,
        data: &[Range],
        memory: &Arc<GuestRam>,
        operation: fn(GuestBuffers, u64) -> RingOperation,
    ) -> Plan {
        if !self.within(offset, length) {
            return self.refuse("a request past the end of the disk");
        }
        match GuestBuffers::new(memory, data) {
            Ok(buffers) => Plan::Transfer(operation(buffers, offset)),
            Err(error) => self.refuse(&error.to_string()),
        }
    }

    /// A write that could make another kind of image of this one. The guest
    /// can change its memory at any time, so a copy is checked and written.
    fn checked_write(&self, buffers: &GuestBuffers, offset: u64) -> Plan {
        let checked = AlignedBuffer::new(buffers.length()).and_then(|mut copy| {
            buffers.copy_to(copy.bytes_mut());
            let refused = self.image.makes_mark(offset, copy.bytes())?;
            Ok((!refused).then_some(copy))
        });
        match checked {
            Ok(Some(copy)) => Plan::Written(
                self.image
                    .write_bytes(&copy, offset, copy.bytes().len())
                    .and_then(|()| self.flush_unless_cached()),
            ),
            Ok(None) => self.refuse("a write that would change what kind of image this is"),
            Err(error) => self.fail(&error),
        }
    }

    fn get_id(&self, data: &[Range], memory: &Arc<GuestRam>) -> Plan {
        let mut id = [0; ID_LENGTH];
        for (byte, value) in id.iter_mut().zip(self.serial.bytes()) {
            *byte = value;
        }
        match GuestBuffers::new(memory, data) {
            Ok(buffers) if buffers.length() >= ID_LENGTH => {
                buffers.copy_from(&id);
                Plan::Done(Status::Ok, ID_LENGTH as u32)
            }
            _ => self.refuse("no room for the serial number"),
        }
    }

    fn extents(
        &self,
        extents: &[Extent],
        stop: &StopFlag,
        work: impl Fn(&Extent) -> io::Result<()>,
    ) -> Plan {
        if self.image.geometry().read_only {
            return self.refuse("a write to a read-only disk");
        }
        for extent in extents {
            if !self.within(extent.offset, extent.length) {
                return self.refuse("a range past the end of the disk");
            }
        }
        for piece in extents.iter().flat_map(pieces) {
            if stop.is_set() {
                return Plan::Unfinished;
            }
            if let Err(error) = work(&piece) {
                return self.fail(&error);
            }
        }
        match self.flush_unless_cached() {
            Ok(()) => Plan::Done(Status::Ok, 0),
            Err(error) => self.fail(&error),
        }
    }

    fn flush_unless_cached(&self) -> io::Result<()> {
        if self.config.writeback() {
            return Ok(());
        }
        self.image.flush()
    }

    /// The file for the ring to carry an operation out on; `None` if it cannot.
    pub(super) fn file_for(&self, operation: &RingOperation) -> Option<&Arc<File>> {
        match operation {
            RingOperation::Read(buffers, offset) | RingOperation::Write(buffers, offset) => {
                self.image.plain_file(buffers, *offset)
            }
            RingOperation::Sync if self.image.geometry().read_only => None,
            RingOperation::Sync => self.image.sync_file(),
        }
    }

    /// Does a transfer at once.
    pub(super) fn perform(&self, operation: &RingOperation) -> io::Result<()> {
        match operation {
            RingOperation::Read(buffers, offset) => self.image.read(buffers, *offset),
            RingOperation::Write(buffers, offset) => {
                self.image.write(buffers, *offset)?;
                self.flush_unless_cached()
            }
            RingOperation::Sync if self.image.geometry().read_only => Ok(()),
            RingOperation::Sync => self.image.flush(),
        }
    }
}

fn pieces(extent: &Extent) -> impl Iterator<Item = Extent> {
    let Extent {
        offset,
        length,
        unmap,
    } = *extent;
    (0..length.div_ceil(PIECE)).map(move |index| Extent {
        offset: offset + index * PIECE,
        length: PIECE.min(length - index * PIECE),
        unmap,
    })
}

/// Tells the driver the outcome of a request.
pub(super) fn write_status(
    memory: &GuestRam,
    at: vm_memory::GuestAddress,
    status: Status,
) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(status as u8, at)
}
