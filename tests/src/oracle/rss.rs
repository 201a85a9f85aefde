//! The memory that a VMM takes for itself, as the kernel accounts for it.

use std::fs;

use anyhow::{Context, Result, ensure};

/// Bytes of a process in memory without the mapping that is its guest's.
pub fn own_memory(pid: u32, guest_mib: u64) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))
        .with_context(|| format!("Cannot read the mappings of process {pid}"))?;
    let (own, guests) = sum(&maps, guest_mib * 1024);
    ensure!(
        guests == 1,
        "{guests} mappings look like the guest's memory"
    );
    Ok(own)
}

/// Bytes of all mappings below a size in kB, and how many are not.
fn sum(maps: &str, guest_kb: u64) -> (u64, u32) {
    let (mut own, mut guests) = (0, 0);
    let mut size = 0;
    for line in maps.lines() {
        let kilobytes = |name: &str| -> Option<u64> {
            line.strip_prefix(name)?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        };
        if let Some(value) = kilobytes("Size:") {
            size = value;
        } else if let Some(value) = kilobytes("Pss:") {
            if size >= guest_kb {
                guests += 1;
            } else {
                own += value * 1024;
            }
        }
    }
    (own, guests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_mapping_is_left_out() {
        let maps = "7f00-7f10 rw-p\nSize:   65536 kB\nRss:  4 kB\nPss:   65000 kB\n\
                    7f20-7f30 rw-p\nSize:      12 kB\nRss: 12 kB\nPss:       8 kB\n";
        assert_eq!(sum(maps, 65536), (8192, 1));
    }
}
