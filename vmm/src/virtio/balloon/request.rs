//! What the driver puts into the queues: lists of page numbers, and pages
//! themselves.

use std::io::Read;

use vm_memory::GuestAddress;

use crate::virtio::{Chain, StopFlag};

/// The unit of the device, whatever the guest's page size.
pub(super) const PAGE: u64 = 4096;
/// Page numbers are read so many at a time.
const STEP: usize = 256;
const NUMBER: usize = size_of::<u32>();
/// A list has no more page numbers than this. Linux and FreeBSD send 256 at a
/// time, Windows 1024.
pub(super) const MAX_PAGES: usize = 4096;
/// A run is given back in pieces of this many bytes.
pub(super) const PIECE: u64 = 64 << 20;

/// Guest memory without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: GuestAddress,
    pub(super) length: u64,
}

/// Why a request is not served, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The buffers do not lie in guest memory.
    #[error("A request with misplaced buffers: {0}")]
    Buffers(virtio_queue::Error),
    /// Not a number of page numbers.
    #[error("A list of {0} bytes is not a list of page numbers")]
    Length(usize),
    /// More page numbers than are served at once.
    #[error("A list of {0} bytes has more than {MAX_PAGES} page numbers")]
    TooLong(usize),
    /// Cut off while it was read.
    #[error("A list that cannot be read")]
    Unreadable,
}

/// Collects pages into runs, so that the host is asked once for many.
#[derive(Default)]
struct Runs {
    current: Option<Run>,
}

impl Runs {
    /// Adds a page; gives back the run before it if it does not continue that.
    /// Drivers list pages upwards or downwards.
    fn add(&mut self, page: u64) -> Option<Run> {
        match &mut self.current {
            Some(run) if run.start.0 + run.length == page => {
                run.length += PAGE;
                None
            }
            Some(run) if page + PAGE == run.start.0 => {
                run.start = GuestAddress(page);
                run.length += PAGE;
                None
            }
            current => current.replace(Run {
                start: GuestAddress(page),
                length: PAGE,
            }),
        }
    }
}

/// Calls `visit` with the pages that a list names, until the queue is to be let go of.
pub(super) fn listed_pages(
    chain: &Chain,
    stop: &StopFlag,
    mut visit: impl FnMut(Run),
) -> Result<(), RequestError> {
    let mut reader = chain
        .clone()
        .reader(chain.memory())
        .map_err(RequestError::Buffers)?;
    let mut left = reader.available_bytes();
    if !left.is_multiple_of(NUMBER) {
        return Err(RequestError::Length(left));
    }
    if left > MAX_PAGES * NUMBER {
        return Err(RequestError::TooLong(left));
    }
    let mut runs = Runs::default();
    let mut bytes = [0; STEP * NUMBER];
    while left > 0 {
        let step = left.min(bytes.len());
        reader
            .read_exact(&mut bytes[..step])
            .map_err(|_| RequestError::Unreadable)?;
        for number in bytes[..step].as_chunks().0 {
            if stop.is_ending() {
                return Ok(());
            }
            let page = u64::from(u32::from_le_bytes(*number)) * PAGE;
            if let Some(run) = runs.add(page) {
                visit(run);
            }
        }
        left -= step;
    }
    if let Some(run) = runs.current {
        visit(run);
    }
    Ok(())
}

/// Calls `visit` with the pages that are the buffers of a chain, in pieces,
/// until the queue is to be let go of.
pub(super) fn reported_pages(chain: &Chain, stop: &StopFlag, mut visit: impl FnMut(Run)) {
    for descriptor in chain.clone().writable() {
        // The driver reports whole pages; of anything else the inner ones.
        let start = descriptor.addr().0;
        let end = start.saturating_add(u64::from(descriptor.len()));
        let (Some(mut start), end) = (start.checked_next_multiple_of(PAGE), end - end % PAGE)
        else {
            continue;
        };
        while start < end && !stop.is_ending() {
            let length = PIECE.min(end - start);
            visit(Run {
                start: GuestAddress(start),
                length,
            });
            start += length;
        }
    }
}
