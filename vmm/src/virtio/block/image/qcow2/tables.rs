//! Checks the tables of a qcow2 image before it is written to: everything that
//! is used lies in the file, is used once, and is counted as used. The library
//! relies on this. Where it does not hold, a write would destroy other data or
//! the tables themselves.
//!
//! Takes memory and time for what the image holds, and not for what it claims
//! to: eight bytes for each cluster in use, up to [`MAX_L2_BYTES`] of tables.

use std::fs::File;

use super::Qcow2Error;
use super::header::{Header, read_or_zero};

/// Bits of table entries that are an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const SECTOR: u64 = 512;
/// Tables of the second level are read up to this size: those of 256 GiB of
/// data in clusters of 64 KiB. The places of all of them are checked.
const MAX_L2_BYTES: u64 = 32 << 20;

/// Clusters of the file that are in use, by number.
#[derive(Default)]
struct Used {
    /// Each of these has one user.
    single: Vec<u64>,
    /// Compressed clusters share these.
    shared: Vec<u64>,
}

struct Image<'a> {
    file: &'a File,
    header: &'a Header,
    /// In bytes; what lies beyond it does not exist.
    length: u64,
}

/// Checks all tables of an image in a file of so many bytes.
pub(super) fn check(file: &File, header: &Header, length: u64) -> Result<(), Qcow2Error> {
    let image = Image {
        file,
        header,
        length,
    };
    let mut used = Used::default();
    // The header's cluster.
    used.single.push(0);
    image.add_table(
        &mut used,
        header.l1_offset,
        u64::from(header.l1_entries) * 8,
    );
    let refcount_bytes = u64::from(header.refcount_table_clusters) << header.cluster_bits;
    image.add_table(&mut used, header.refcount_table_offset, refcount_bytes);
    let blocks = image.entries(header.refcount_table_offset, refcount_bytes)?;
    for &block in blocks.iter().filter(|block| **block != 0) {
        let cluster = image.cluster_at(block & OFFSET, "refcount block")?;
        used.single.push(cluster);
    }
    image.add_data(&mut used)?;
    used.single.sort_unstable();
    used.shared.sort_unstable();
    used.shared.dedup();
    if let Some(twice) = used.single.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Qcow2Error::Overlap(twice[0]));
    }
    let overlap = |cluster: &&u64| used.single.binary_search(cluster).is_ok();
    if let Some(cluster) = used.shared.iter().find(overlap) {
        return Err(Qcow2Error::Overlap(*cluster));
    }
    for clusters in [&used.single, &used.shared] {
        image.check_counted(clusters, &blocks)?;
    }
    Ok(())
}

impl Image<'_> {
    /// The entries of a table, of eight bytes each.
    fn entries(&self, offset: u64, bytes: u64) -> Result<Vec<u64>, Qcow2Error> {
        let mut table = vec![0; bytes as usize];
        read_or_zero(self.file, &mut table, offset).map_err(Qcow2Error::Read)?;
        let (entries, _) = table.as_chunks::<8>();
        Ok(entries
            .iter()
            .map(|entry| u64::from_be_bytes(*entry))
            .collect())
    }

    /// Number of the cluster at an offset, where something of the kind `what`
    /// has to be.
    fn cluster_at(&self, offset: u64, what: &'static str) -> Result<u64, Qcow2Error> {
        if !offset.is_multiple_of(self.header.cluster()) || offset == 0 {
            return Err(Qcow2Error::Misplaced(what));
        }
        if offset >= self.length {
            return Err(Qcow2Error::BeyondEnd(what));
        }
        Ok(offset >> self.header.cluster_bits)
    }

    fn add_table(&self, used: &mut Used, offset: u64, bytes: u64) {
        let first = offset >> self.header.cluster_bits;
        let count = bytes.div_ceil(self.header.cluster());
        used.single.extend(first..first + count);
    }

    /// Adds the tables of the second level and what they lead to.
    fn add_data(&self, used: &mut Used) -> Result<(), Qcow2Error> {
        let cluster = self.header.cluster();
        let mut left = MAX_L2_BYTES;
        let l1 = self.entries(self.header.l1_offset, u64::from(self.header.l1_entries) * 8)?;
        for &entry in l1.iter().filter(|entry| *entry & OFFSET != 0) {
            let table = entry & OFFSET;
            used.single.push(self.cluster_at(table, "L2 table")?);
            if left < cluster {
                continue;
            }
            left -= cluster;
            for entry in self.entries(table, cluster)? {
                if entry & COMPRESSED != 0 {
                    self.add_compressed(used, entry)?;
                } else if entry & OFFSET != 0 {
                    used.single
                        .push(self.cluster_at(entry & OFFSET, "data cluster")?);
                }
            }
        }
        if left < cluster {
            log::info!("a large qcow2 image: not all of its data clusters are checked");
        }
        Ok(())
    }

    /// A compressed cluster begins at any byte and is so many sectors long.
    fn add_compressed(&self, used: &mut Used, entry: u64) -> Result<(), Qcow2Error> {
        let bits = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> bits;
        if offset == 0 {
            return Err(Qcow2Error::Misplaced("compressed cluster"));
        }
        if offset >= self.length {
            return Err(Qcow2Error::BeyondEnd("compressed cluster"));
        }
        let end = (offset / SECTOR + sectors + 1) * SECTOR;
        let clusters = offset >> self.header.cluster_bits..end.div_ceil(self.header.cluster());
        used.shared.extend(clusters);
        Ok(())
    }

    /// Checks that the reference counts of these clusters, in ascending order,
    /// are not zero.
    fn check_counted(&self, clusters: &[u64], blocks: &[u64]) -> Result<(), Qcow2Error> {
        let order = self.header.refcount_order;
        let per_block = (self.header.cluster() * 8) >> order;
        let mut current = None;
        let mut block = Vec::new();
        for &cluster in clusters {
            let index = cluster / per_block;
            if current != Some(index) {
                let entry = usize::try_from(index)
                    .ok()
                    .and_then(|index| blocks.get(index));
                let offset = entry.map_or(0, |entry| entry & OFFSET);
                if offset == 0 {
                    return Err(Qcow2Error::NotCounted(cluster));
                }
                block.resize(self.header.cluster() as usize, 0);
                read_or_zero(self.file, &mut block, offset).map_err(Qcow2Error::Read)?;
                current = Some(index);
            }
            let bit = (cluster % per_block) << order;
            let byte = (bit / 8) as usize;
            let counted = match order {
                0..=2 => {
                    let mask = ((1u16 << (1 << order)) - 1) as u8;
                    block[byte] >> (bit % 8) & mask != 0
                }
                _ => block[byte..byte + (1 << order) / 8]
                    .iter()
                    .any(|byte| *byte != 0),
            };
            if !counted {
                return Err(Qcow2Error::NotCounted(cluster));
            }
        }
        Ok(())
    }
}
