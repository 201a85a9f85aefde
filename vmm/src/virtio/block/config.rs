//! The configuration structure (5.2.4).

use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_blk as bits;

use super::SECTOR;
use super::image::Image;

/// Up to and including the fields of write-zeroes.
pub(super) const LENGTH: usize = 60;
/// The write cache's switch, all that a driver may write.
const WRITEBACK: usize = 32;

/// Buffers of data in one request: as many as one system call takes, however
/// long the queue is.
const MAX_DATA_SEGMENTS: u16 = 1022;
/// Ranges in one request.
pub(super) const MAX_SEGMENTS: u32 = 16;
/// Sectors in one range.
pub(super) const MAX_SECTORS: u32 = 1 << 22;

/// What both driver and device know of the disk.
pub(super) struct BlkConfigSpace {
    bytes: [u8; LENGTH],
    features: u64,
    writeback: AtomicBool,
}

impl BlkConfigSpace {
    pub(super) fn new(image: &Image, queues: u16, queue_size: u16) -> Self {
        let geometry = image.geometry();
        let mut features = 1 << bits::VIRTIO_BLK_F_BLK_SIZE
            | 1 << bits::VIRTIO_BLK_F_TOPOLOGY
            | 1 << bits::VIRTIO_BLK_F_SEG_MAX
            | 1 << bits::VIRTIO_BLK_F_FLUSH;
        if geometry.read_only {
            features |= 1 << bits::VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << bits::VIRTIO_BLK_F_CONFIG_WCE | 1 << bits::VIRTIO_BLK_F_WRITE_ZEROES;
            if geometry.sparse {
                features |= 1 << bits::VIRTIO_BLK_F_DISCARD;
            }
        }
        if queues > 1 {
            features |= 1 << bits::VIRTIO_BLK_F_MQ;
        }
        let block = geometry.block_size;
        let mut bytes = [0; LENGTH];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        // A request needs one descriptor for its header and one for its status.
        let segments = queue_size.saturating_sub(2).clamp(1, MAX_DATA_SEGMENTS);
        put(12, &u32::from(segments).to_le_bytes());
        put(20, &block.to_le_bytes());
        // Physical blocks of 4 KiB, as most media have.
        put(24, &[(4096 / block.clamp(512, 4096)).ilog2() as u8, 0]);
        put(26, &1u16.to_le_bytes());
        put(WRITEBACK, &[1]);
        put(34, &queues.to_le_bytes());
        let alignment = block / SECTOR as u32;
        put(36, &MAX_SECTORS.to_le_bytes());
        put(40, &MAX_SEGMENTS.to_le_bytes());
        put(44, &alignment.to_le_bytes());
        put(48, &MAX_SECTORS.to_le_bytes());
        put(52, &MAX_SEGMENTS.to_le_bytes());
        put(56, &[u8::from(geometry.sparse)]);
        Self {
            bytes,
            features,
            writeback: AtomicBool::new(true),
        }
    }

    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// The structure for a disk of this size.
    pub(super) fn bytes(&self, size: u64) -> [u8; LENGTH] {
        let mut bytes = self.bytes;
        bytes[..8].copy_from_slice(&(size / SECTOR).to_le_bytes());
        bytes[WRITEBACK] = u8::from(self.writeback.load(Ordering::Acquire));
        bytes
    }

    /// The driver may switch the write cache, if it negotiated that.
    pub(super) fn write(&self, offset: usize, data: &[u8]) {
        if let (WRITEBACK, &[value @ (0 | 1)]) = (offset, data) {
            self.writeback.store(value == 1, Ordering::Release);
        }
    }

    /// Follows what was negotiated: without a way to flush there is no cache.
    pub(super) fn negotiate(&self, features: u64) {
        let flush = features & (1 << bits::VIRTIO_BLK_F_FLUSH) != 0;
        let wce = features & (1 << bits::VIRTIO_BLK_F_CONFIG_WCE) != 0;
        if !wce {
            self.writeback.store(flush, Ordering::Release);
        }
    }

    /// Sets the write cache's switch.
    pub(super) fn set_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::Release);
    }

    pub(super) fn reset(&self) {
        self.writeback.store(true, Ordering::Release);
    }

    /// Whether a write may be complete before it is durable.
    pub(super) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Acquire)
    }
}
