//! From a chain to a typed request (5.2.6). Pure: reads the header and the
//! lists of ranges from guest memory, and does no I/O.

use std::time::Instant;

use virtio_bindings::virtio_blk as bits;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::SECTOR;
use super::config::{MAX_SECTORS, MAX_SEGMENTS};
use crate::memory::GuestRam;
use crate::virtio::Chain;

const HEADER: usize = 16;
const SEGMENT: usize = 16;
/// No request moves more than this. Drivers stay far below.
const MAX_BYTES: u64 = 256 << 20;
const FLAG_UNMAP: u32 = 1;

/// Outcomes, as the status byte says them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = bits::VIRTIO_BLK_S_OK as u8,
    Failed = bits::VIRTIO_BLK_S_IOERR as u8,
    Unsupported = bits::VIRTIO_BLK_S_UNSUPP as u8,
}

/// A piece of guest memory.
pub(super) type Range = (GuestAddress, u32);

/// A range of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) unmap: bool,
}

/// What is asked for. Offsets and lengths are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Read {
        offset: u64,
        data: Vec<Range>,
        length: u64,
    },
    Write {
        offset: u64,
        data: Vec<Range>,
        length: u64,
    },
    Flush,
    GetId {
        data: Vec<Range>,
    },
    Discard(Vec<Extent>),
    WriteZeroes(Vec<Extent>),
    /// Something this device does not do.
    Other(u32),
    /// Something that makes no sense.
    Malformed(&'static str),
}

impl Kind {
    /// Bytes that it moves.
    pub(super) fn length(&self) -> u64 {
        match self {
            Kind::Read { length, .. } | Kind::Write { length, .. } => *length,
            _ => 0,
        }
    }
}

/// A request from the chain to its end: what is asked for, and where the outcome
/// goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) head: u16,
    pub(super) status: GuestAddress,
    pub(super) kind: Kind,
    pub(super) since: Instant,
}

/// A chain that has not even room for an outcome.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("A request without room for its status")]
pub(super) struct NoStatus;

/// Parses a chain. How the driver cut header, data and status into buffers
/// does not matter.
pub(super) fn parse(chain: &Chain, memory: &GuestRam) -> Result<Request, NoStatus> {
    let mut readable: Vec<Range> = Vec::new();
    let mut writable: Vec<Range> = Vec::new();
    let mut disordered = false;
    for descriptor in chain.clone() {
        let range = (descriptor.addr(), descriptor.len());
        if range.1 == 0 {
            continue;
        }
        if descriptor.is_write_only() {
            writable.push(range);
        } else {
            disordered |= !writable.is_empty();
            readable.push(range);
        }
    }
    let status = take_last_byte(&mut writable).ok_or(NoStatus)?;
    if !memory.check_range(status, 1, Permissions::Write) {
        return Err(NoStatus);
    }
    let kind = if disordered {
        Kind::Malformed("its buffers are out of order")
    } else {
        kind(memory, readable, writable)
    };
    Ok(Request {
        head: chain.head_index(),
        status,
        kind,
        since: Instant::now(),
    })
}

fn kind(memory: &GuestRam, mut readable: Vec<Range>, writable: Vec<Range>) -> Kind {
    let Some(header) = take_front::<HEADER>(memory, &mut readable) else {
        return Kind::Malformed("its header is short or misplaced");
    };
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
    let offset = sector.checked_mul(SECTOR);
    match word(0) {
        bits::VIRTIO_BLK_T_IN => match (offset, whole_sectors(&writable)) {
            (Some(offset), Some(length)) => Kind::Read {
                offset,
                data: writable,
                length,
            },
            _ => Kind::Malformed("a read of an impossible length or place"),
        },
        bits::VIRTIO_BLK_T_OUT => match (offset, whole_sectors(&readable)) {
            (Some(offset), Some(length)) => Kind::Write {
                offset,
                data: readable,
                length,
            },
            _ => Kind::Malformed("a write of an impossible length or place"),
        },
        bits::VIRTIO_BLK_T_FLUSH => Kind::Flush,
        bits::VIRTIO_BLK_T_GET_ID => Kind::GetId { data: writable },
        bits::VIRTIO_BLK_T_DISCARD => extents(memory, readable).map_or(
            Kind::Malformed("a discard with impossible ranges"),
            Kind::Discard,
        ),
        bits::VIRTIO_BLK_T_WRITE_ZEROES => extents(memory, readable).map_or(
            Kind::Malformed("a write of zeroes with impossible ranges"),
            Kind::WriteZeroes,
        ),
        other => Kind::Other(other),
    }
}

fn total(ranges: &[Range]) -> u64 {
    ranges.iter().map(|range| u64::from(range.1)).sum()
}

fn whole_sectors(ranges: &[Range]) -> Option<u64> {
    let length = total(ranges);
    (length > 0 && length <= MAX_BYTES && length.is_multiple_of(SECTOR)).then_some(length)
}

fn take_last_byte(ranges: &mut Vec<Range>) -> Option<GuestAddress> {
    let (address, length) = ranges.last_mut()?;
    *length -= 1;
    let at = GuestAddress(address.0.checked_add(u64::from(*length))?);
    if *length == 0 {
        ranges.pop();
    }
    Some(at)
}

/// Takes `N` bytes from the front of the ranges.
fn take_front<const N: usize>(memory: &GuestRam, ranges: &mut Vec<Range>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut done = 0;
    while done < N {
        let (address, length) = ranges.first_mut()?;
        let step = (N - done).min(*length as usize);
        memory
            .read_slice(&mut bytes[done..done + step], *address)
            .ok()?;
        done += step;
        *length -= step as u32;
        address.0 = address.0.checked_add(step as u64)?;
        if *length == 0 {
            ranges.remove(0);
        }
    }
    Some(bytes)
}

fn extents(memory: &GuestRam, mut ranges: Vec<Range>) -> Option<Vec<Extent>> {
    let length = total(&ranges);
    let count = length / SEGMENT as u64;
    if !length.is_multiple_of(SEGMENT as u64) || !(1..=u64::from(MAX_SEGMENTS)).contains(&count) {
        return None;
    }
    (0..count)
        .map(|_| {
            let segment = take_front::<SEGMENT>(memory, &mut ranges)?;
            let [a, b, c, d, e, f, g, h, rest @ ..] = segment;
            let [s0, s1, s2, s3, f0, f1, f2, f3] = rest;
            let flags = u32::from_le_bytes([f0, f1, f2, f3]);
            if flags & !FLAG_UNMAP != 0 {
                return None;
            }
            let sectors = u32::from_le_bytes([s0, s1, s2, s3]);
            if sectors > MAX_SECTORS {
                return None;
            }
            Some(Extent {
                offset: u64::from_le_bytes([a, b, c, d, e, f, g, h]).checked_mul(SECTOR)?,
                length: u64::from(sectors) * SECTOR,
                unmap: flags & FLAG_UNMAP != 0,
            })
        })
        .collect()
}
