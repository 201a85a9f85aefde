//! The header of a qcow2 image (QEMU, docs/interop/qcow2.rst), checked. What
//! is not understood, or would be misread, is refused.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::Qcow2Error;
use crate::virtio::block::SECTOR;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Length of a header of version 2, and least length of later ones.
const V2_LENGTH: u32 = 72;
const V3_LENGTH: u32 = 104;
/// QEMU's limits for cluster sizes, tables and names.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const MAX_BACKING_NAME: u32 = 1023;
/// Type of the header extension that names the backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
/// The remaining incompatible features, by bit. None is supported.
const FEATURES: [(u32, &str); 3] = [
    (2, "an external data file"),
    (3, "a compression other than deflate"),
    (4, "extended L2 entries"),
];

/// Bytes of the header that hold the incompatible features, big endian.
pub(super) const FEATURES_AT: std::ops::Range<usize> = 72..80;
/// Those that say nothing to a reader.
pub(super) const REPAIRABLE: u64 = DIRTY | CORRUPT;

/// The file behind an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backing {
    /// Relative to the folder of the image.
    pub(super) name: PathBuf,
    /// As the image says.
    pub(super) format: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) cluster_bits: u32,
    /// Of the disk, in bytes.
    pub(super) size: u64,
    pub(super) l1_entries: u32,
    pub(super) l1_offset: u64,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u32,
    /// A reference count has two to the power of this many bits.
    pub(super) refcount_order: u32,
    pub(super) backing: Option<Backing>,
}

impl Header {
    /// Reads and checks the header. `writable` says that the image is to be
    /// written, for which it has to be intact.
    pub(super) fn read(file: &File, writable: bool) -> Result<Self, Qcow2Error> {
        let mut bytes = vec![0; V3_LENGTH as usize];
        read_or_zero(file, &mut bytes, 0).map_err(Qcow2Error::Read)?;
        let word = |at: usize| -> u32 {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_be_bytes(word)
        };
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        if bytes[..4] != MAGIC {
            return Err(Qcow2Error::NotQcow2);
        }
        let version = word(4);
        if !matches!(version, 2 | 3) {
            return Err(Qcow2Error::Version(version));
        }
        let cluster_bits = word(20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Qcow2Error::ClusterBits(cluster_bits));
        }
        if word(32) != 0 {
            return Err(Qcow2Error::Encrypted);
        }
        let (features, refcount_order, length) = match version {
            2 => (0, 4, V2_LENGTH),
            _ => (long(FEATURES_AT.start), word(96), word(100)),
        };
        check_features(features, writable)?;
        if refcount_order > 6 {
            return Err(Qcow2Error::Field("refcount_order"));
        }
        let cluster = 1u32 << cluster_bits;
        if length > cluster || length < if version == 2 { V2_LENGTH } else { V3_LENGTH } {
            return Err(Qcow2Error::Field("header_length"));
        }
        let header = Self {
            cluster_bits,
            size: long(24),
            l1_entries: word(36),
            l1_offset: long(40),
            refcount_table_offset: long(48),
            refcount_table_clusters: word(56),
            refcount_order,
            backing: backing(file, cluster, length, long(8), word(16))?,
        };
        header.check(file.metadata().map_err(Qcow2Error::Read)?.len(), writable)?;
        Ok(header)
    }

    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of the first-level table that the disk's size takes.
    fn l1_needed(&self) -> u64 {
        // An entry leads to a cluster of entries of eight bytes.
        let covers = self.cluster() * (self.cluster() / 8);
        self.size.div_ceil(covers)
    }

    /// Checks sizes and places, of which a block device cannot say whether
    /// they lie within the file: its length reads as zero.
    fn check(&self, file_length: u64, writable: bool) -> Result<(), Qcow2Error> {
        let aligned = |offset: u64| offset > 0 && offset.is_multiple_of(self.cluster());
        if !self.size.is_multiple_of(SECTOR) || i64::try_from(self.size).is_err() {
            return Err(Qcow2Error::Size(self.size));
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if self.l1_needed() > MAX_L1_BYTES / 8 || l1_bytes > MAX_L1_BYTES {
            return Err(Qcow2Error::TableTooLarge("L1 table"));
        }
        if u64::from(self.l1_entries) < self.l1_needed() {
            return Err(Qcow2Error::L1TooSmall {
                entries: self.l1_entries,
                needed: self.l1_needed(),
            });
        }
        if l1_bytes > 0 && !aligned(self.l1_offset) {
            return Err(Qcow2Error::Misplaced("L1 table"));
        }
        let refcount_bytes = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        if refcount_bytes > MAX_REFCOUNT_TABLE_BYTES {
            return Err(Qcow2Error::TableTooLarge("refcount table"));
        }
        if writable && (refcount_bytes == 0 || !aligned(self.refcount_table_offset)) {
            return Err(Qcow2Error::Misplaced("refcount table"));
        }
        let within = |offset: u64, length: u64| {
            file_length == 0
                || length == 0
                || offset
                    .checked_add(length)
                    .is_some_and(|end| end <= file_length)
        };
        if !within(self.l1_offset, l1_bytes) {
            return Err(Qcow2Error::BeyondEnd("L1 table"));
        }
        if writable && !within(self.refcount_table_offset, refcount_bytes) {
            return Err(Qcow2Error::BeyondEnd("refcount table"));
        }
        Ok(())
    }
}

fn check_features(features: u64, writable: bool) -> Result<(), Qcow2Error> {
    if writable && features & DIRTY != 0 {
        return Err(Qcow2Error::Dirty);
    }
    if writable && features & CORRUPT != 0 {
        return Err(Qcow2Error::Corrupt);
    }
    let unknown = features & !REPAIRABLE;
    if unknown == 0 {
        return Ok(());
    }
    let bit = unknown.trailing_zeros();
    let name = FEATURES.iter().find(|(number, _)| *number == bit);
    Err(Qcow2Error::Feature(name.map_or_else(
        || format!("the incompatible feature {bit}"),
        |(_, name)| (*name).to_owned(),
    )))
}

/// The name of the backing file, which lies in the first cluster, and what the
/// header extensions say of its format.
fn backing(
    file: &File,
    cluster: u32,
    header_length: u32,
    offset: u64,
    length: u32,
) -> Result<Option<Backing>, Qcow2Error> {
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > MAX_BACKING_NAME || offset + u64::from(length) > u64::from(cluster) {
        return Err(Qcow2Error::Field("backing_file_offset"));
    }
    let mut first = vec![0; cluster as usize];
    read_or_zero(file, &mut first, 0).map_err(Qcow2Error::Read)?;
    let name = &first[offset as usize..][..length as usize];
    let name = {
        use std::os::unix::ffi::OsStrExt;
        PathBuf::from(std::ffi::OsStr::from_bytes(name))
    };
    Ok(Some(Backing {
        name,
        format: extension(&first[header_length as usize..], BACKING_FORMAT),
    }))
}

/// The content of a header extension. Each begins with type and length, and
/// is padded to eight bytes.
fn extension(mut rest: &[u8], wanted: u32) -> Option<Vec<u8>> {
    loop {
        let (kind, after) = rest.split_first_chunk::<4>()?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let (kind, length) = (u32::from_be_bytes(*kind), u32::from_be_bytes(*length));
        if kind == 0 {
            return None;
        }
        let length = length as usize;
        let content = after.get(..length)?;
        if kind == wanted {
            return Some(content.to_vec());
        }
        rest = after.get(length.next_multiple_of(8)..)?;
    }
}

/// Fills `bytes` from the file; what lies past its end is zero.
pub(super) fn read_or_zero(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[done..].fill(0);
    Ok(())
}
