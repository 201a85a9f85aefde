//! A VM's memory as it lies in the process that runs it.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

/// The checksum of the only mapping of `bytes` bytes in a process: its guest's
/// memory.
///
/// # Errors
/// There is no such mapping, or more than one, or it cannot be read.
pub fn checksum(pid: u32, bytes: u64) -> Result<u64> {
    let start = only_mapping(pid, bytes)?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut hasher = DefaultHasher::new();
    let mut part = vec![0; 1 << 20];
    for at in (start..start + bytes).step_by(part.len()) {
        memory
            .read_exact_at(&mut part, at)
            .with_context(|| format!("Cannot read the memory of process {pid} at {at:#x}"))?;
        hasher.write(&part);
    }
    Ok(hasher.finish())
}

/// The word of 16 bits at a guest's address, in memory of `bytes` bytes without a
/// hole.
///
/// # Errors
/// As with [`checksum`].
pub fn word(pid: u32, bytes: u64, address: u64) -> Result<u16> {
    ensure!(address + 2 <= bytes, "{address:#x} is beyond the memory");
    let at = only_mapping(pid, bytes)? + address;
    let mut word = [0; 2];
    File::open(format!("/proc/{pid}/mem"))?
        .read_exact_at(&mut word, at)
        .with_context(|| format!("Cannot read the memory of process {pid} at {at:#x}"))?;
    Ok(u16::from_le_bytes(word))
}

/// Where the only mapping of so many bytes starts.
fn only_mapping(pid: u32, bytes: u64) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .with_context(|| format!("Cannot read the mappings of process {pid}"))?;
    let starts = mappings(&maps, bytes);
    ensure!(
        starts.len() == 1,
        "{} mappings of process {pid} have {bytes} bytes",
        starts.len()
    );
    Ok(starts[0])
}

/// Where the mappings of so many bytes start.
fn mappings(maps: &str, bytes: u64) -> Vec<u64> {
    maps.lines()
        .filter_map(|line| {
            let (start, rest) = line.split_once('-')?;
            let (end, _) = rest.split_once(' ')?;
            let start = u64::from_str_radix(start, 16).ok()?;
            let end = u64::from_str_radix(end, 16).ok()?;
            (end - start == bytes).then_some(start)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_by_its_size() {
        let maps = "7f0000000000-7f0000002000 rw-s 00000000 00:01 5 /memfd:ram (deleted)\n\
                    7f0000100000-7f0000101000 rw-p 00000000 00:00 0\n";
        assert_eq!(mappings(maps, 0x2000), [0x7f00_0000_0000]);
        assert!(mappings(maps, 0x3000).is_empty());
    }
}
