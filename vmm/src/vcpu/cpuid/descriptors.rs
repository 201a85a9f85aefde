//! Leaf 2: caches and TLBs as a list of one-byte descriptors.
//!
//! Processors of today answer "see leaf 4" for their caches. The C library
//! then walks leaf 4 for each of a dozen questions whenever a program starts,
//! some thirty exits each time. Descriptors that say the same, put before the
//! reference, answer those questions at once.

use hypervisor::x86::CpuidEntry;

/// Descriptor that refers to leaf 4.
const SEE_LEAF_4: u8 = 0xff;
/// The registers of one query hold this many descriptors.
const ROOM: usize = 15;
/// A register with this bit holds no descriptors.
const NO_DESCRIPTORS: u32 = 1 << 31;

/// What a cache is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Code,
    Both,
}

/// A cache as leaf 4 describes it; all have lines of 64 bytes.
type Cache = (u32, Kind, u32, u32);

const LINE: u32 = 64;

/// Level, kind, KiB, ways and the descriptor for exactly that (Intel SDM,
/// volume 2, CPUID, "Encoding of CPUID leaf 2 descriptors").
const DESCRIPTORS: [(Cache, u8); 19] = [
    ((1, Kind::Data, 16, 8), 0x60),
    ((1, Kind::Data, 24, 6), 0x0e),
    ((1, Kind::Data, 32, 8), 0x2c),
    ((1, Kind::Code, 32, 8), 0x30),
    ((2, Kind::Both, 256, 8), 0x21),
    ((2, Kind::Both, 512, 8), 0x80),
    ((2, Kind::Both, 1024, 8), 0x87),
    ((2, Kind::Both, 2048, 8), 0x7d),
    ((3, Kind::Both, 2048, 8), 0xd7),
    ((3, Kind::Both, 4096, 8), 0xd8),
    ((3, Kind::Both, 1536, 12), 0xdc),
    ((3, Kind::Both, 3072, 12), 0xdd),
    ((3, Kind::Both, 6144, 12), 0xde),
    ((3, Kind::Both, 2048, 16), 0xe2),
    ((3, Kind::Both, 4096, 16), 0xe3),
    ((3, Kind::Both, 8192, 16), 0xe4),
    ((3, Kind::Both, 12 << 10, 24), 0xea),
    ((3, Kind::Both, 18 << 10, 24), 0xeb),
    ((3, Kind::Both, 24 << 10, 24), 0xec),
];

/// Rewrites leaf 2 of `leaves` from their leaf 4. Nothing changes when leaf 2
/// does not refer to leaf 4, or when the descriptors have no room.
pub(super) fn describe_caches(leaves: &mut [CpuidEntry]) {
    let caches: Vec<Option<u8>> = leaves
        .iter()
        .filter(|leaf| leaf.function == 4)
        .filter_map(cache)
        .map(descriptor)
        .collect();
    let Some(leaf) = leaves.iter_mut().find(|leaf| leaf.function == 2) else {
        return;
    };
    let old = unpack(leaf);
    if leaf.eax & 0xff != 1 || !old.contains(&SEE_LEAF_4) {
        return;
    }
    let mut list: Vec<u8> = caches.iter().flatten().copied().collect();
    list.extend(old.into_iter().filter(|&byte| byte != SEE_LEAF_4));
    // As soon as one cache has no descriptor, the reference has to stay.
    if caches.iter().any(Option::is_none) {
        list.push(SEE_LEAF_4);
    }
    if list.len() <= ROOM && !caches.is_empty() {
        pack(leaf, &list);
    }
}

/// A subleaf of leaf 4, if it describes a cache.
fn cache(leaf: &CpuidEntry) -> Option<Option<Cache>> {
    let kind = match leaf.eax & 0x1f {
        1 => Kind::Data,
        2 => Kind::Code,
        3 => Kind::Both,
        _ => return None,
    };
    let level = (leaf.eax >> 5) & 7;
    let line = (leaf.ebx & 0xfff) + 1;
    let partitions = ((leaf.ebx >> 12) & 0x3ff) + 1;
    let ways = (leaf.ebx >> 22) + 1;
    let bytes = [line, partitions, ways, leaf.ecx.saturating_add(1)]
        .into_iter()
        .map(u64::from)
        .product::<u64>();
    let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
    Some((line == LINE).then_some((level, kind, kib, ways)))
}

fn descriptor(cache: Option<Cache>) -> Option<u8> {
    let cache = cache?;
    DESCRIPTORS
        .iter()
        .find(|(described, _)| *described == cache)
        .map(|(_, descriptor)| *descriptor)
}

fn registers(leaf: &CpuidEntry) -> [u32; 4] {
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
}

/// The descriptors, without the count in the lowest byte and without gaps.
fn unpack(leaf: &CpuidEntry) -> Vec<u8> {
    registers(leaf)
        .into_iter()
        .enumerate()
        .filter(|(_, register)| register & NO_DESCRIPTORS == 0)
        .flat_map(|(index, register)| {
            let bytes = register.to_le_bytes();
            bytes.into_iter().skip(usize::from(index == 0))
        })
        .filter(|&byte| byte != 0)
        .collect()
}

/// Puts the descriptors into the registers in their order. A byte that would
/// mark its register as empty moves on to the next one.
fn pack(leaf: &mut CpuidEntry, list: &[u8]) {
    let mut bytes = [0u8; 16];
    bytes[0] = 1;
    let mut at = 1;
    for &descriptor in list {
        if at % 4 == 3 && descriptor & 0x80 != 0 {
            at += 1;
        }
        match bytes.get_mut(at) {
            Some(byte) => *byte = descriptor,
            // No room after all: the leaf stays as it was.
            None => return,
        }
        at += 1;
    }
    let mut words = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .copied()
        .map(u32::from_le_bytes);
    for register in [&mut leaf.eax, &mut leaf.ebx, &mut leaf.ecx, &mut leaf.edx] {
        *register = words.next().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subleaf(index: u32, kind: u32, level: u32, ways: u32, sets: u32) -> CpuidEntry {
        CpuidEntry {
            function: 4,
            index,
            eax: kind | level << 5,
            ebx: (ways - 1) << 22 | 63,
            ecx: sets - 1,
            ..Default::default()
        }
    }

    fn leaves(last_level_sets: u32) -> Vec<CpuidEntry> {
        vec![
            CpuidEntry {
                function: 2,
                eax: 0x7603_6301,
                ebx: 0x00f0_b5ff,
                edx: 0x00c3_0000,
                ..Default::default()
            },
            subleaf(0, 1, 1, 8, 64),
            subleaf(1, 2, 1, 8, 64),
            subleaf(2, 3, 2, 8, 512),
            subleaf(3, 3, 3, 16, last_level_sets),
            subleaf(4, 0, 0, 1, 1),
        ]
    }

    #[test]
    fn caches_that_have_descriptors_need_no_reference() {
        let mut leaves = leaves(4096);
        describe_caches(&mut leaves);
        assert_eq!(
            unpack(&leaves[0]),
            [0x2c, 0x30, 0x21, 0xe3, 0x63, 0x03, 0x76, 0xb5, 0xf0, 0xc3]
        );
        assert_eq!(leaves[0].eax & 0xff, 1);
        assert!(
            registers(&leaves[0])
                .iter()
                .all(|r| r & NO_DESCRIPTORS == 0)
        );
    }

    #[test]
    fn a_cache_without_a_descriptor_keeps_the_reference_at_the_end() {
        let mut leaves = leaves(5 << 12);
        describe_caches(&mut leaves);
        let list = unpack(&leaves[0]);
        assert_eq!(list[..3], [0x2c, 0x30, 0x21]);
        assert_eq!(list.last(), Some(&SEE_LEAF_4));
    }

    #[test]
    fn a_list_without_room_stays_as_it_was() {
        let mut leaves = leaves(4096);
        (leaves[0].ebx, leaves[0].ecx) = (0x7fff_b5ff, 0x0102_0304);
        leaves[0].edx = 0x0506_0708;
        let before = registers(&leaves[0]);
        describe_caches(&mut leaves);
        assert_eq!(registers(&leaves[0]), before);
    }

    #[test]
    fn processors_without_the_reference_are_left_alone() {
        let mut leaves = leaves(4096);
        leaves[0].ebx = 0;
        let before = registers(&leaves[0]);
        describe_caches(&mut leaves);
        assert_eq!(registers(&leaves[0]), before);
    }
}
