//! The block device (virtio 1.3, 5.2).
//!
//! | queue | carries |
//! | --- | --- |
//! | 0 to n-1 | requests, each queue served by a thread of its own |
//!
//! Features offered: RO (read-only images), BLK_SIZE, TOPOLOGY, SEG_MAX,
//! FLUSH, CONFIG_WCE, MQ (more than one queue), DISCARD (sparse images),
//! WRITE_ZEROES. Refused: SIZE_MAX, GEOMETRY, LIFETIME, SECURE_ERASE, ZONED,
//! which nothing here limits or has.
//!
//! A write is complete when the host has it; it is durable after a flush. A
//! driver that does not negotiate FLUSH, or switches the write cache off, gets
//! durable writes.
//!
//! `request` parses a chain into the request that travels through the rest; `worker` takes, starts and ends requests, `execute` carries them out; `image` knows
//! formats; `counters` is what `vm.counters` shows.

mod config;
mod counters;
mod device;
mod execute;
pub mod image;
mod request;
#[cfg(test)]
mod tests;
mod wakeups;
mod worker;

pub use device::{Block, DiskImage, DiskLimit, DiskParams};

/// Requests count in these, whatever the image's own unit.
pub(crate) const SECTOR: u64 = 512;
