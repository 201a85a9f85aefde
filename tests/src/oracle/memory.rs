//! What the kernel itself has allocated, to tell whether something was never
//! given back.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const SLABS: &str = "/sys/kernel/slab";

/// The kernel's memory once what is merely kept for later is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelMemory {
    /// Objects in use by slab cache. Caches of one size may share a name.
    pub objects: BTreeMap<String, i64>,
    /// KiB of slabs that nothing can make the kernel give back, single
    /// allocations too large for a slab among them.
    pub unreclaimable: i64,
    /// KiB mapped by vmalloc.
    pub vmalloc: i64,
    /// KiB that are free, those included that a CPU holds in reserve: since
    /// Linux 6.7 that may be an eighth of all, and changes as it likes.
    pub free: i64,
}

impl KernelMemory {
    /// Has the kernel give back what it can, then counts.
    pub fn settled() -> Result<KernelMemory> {
        set(Path::new("/proc/sys/vm/drop_caches"), "3")?;
        // A cache counts what its CPUs hold in reserve as in use, until shrunk.
        for cache in fs::read_dir(SLABS).with_context(|| format!("Cannot list {SLABS}"))? {
            set(&cache?.path().join("shrink"), "1")?;
        }
        set(Path::new("/proc/sys/vm/stat_refresh"), "1")?;
        let text = |path| fs::read_to_string(path).with_context(|| format!("Cannot read {path}"));
        let meminfo = text("/proc/meminfo")?;
        let kib = |name| meminfo_kib(&meminfo, name);
        Ok(KernelMemory {
            objects: objects(&text("/proc/slabinfo")?)?,
            unreclaimable: kib("SUnreclaim:")?,
            vmalloc: kib("VmallocUsed:")?,
            free: kib("MemFree:")? + reserved_kib(&text("/proc/zoneinfo")?)?,
        })
    }

    /// Objects in use in one cache.
    pub fn in_cache(&self, name: &str) -> Result<i64> {
        self.objects
            .get(name)
            .copied()
            .with_context(|| format!("There is no slab cache {name}"))
    }
}

fn set(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("Cannot write {}", path.display()))
}

/// The first column is the cache's name, the second its objects in use.
fn objects(slabinfo: &str) -> Result<BTreeMap<String, i64>> {
    slabinfo
        .lines()
        .filter(|line| !line.starts_with("slabinfo") && !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split_whitespace();
            let (name, used) = (words.next(), words.next());
            let used = used.and_then(|used| used.parse().ok());
            Ok((
                name.unwrap_or_default().to_owned(),
                used.with_context(|| format!("No objects in {line:?}"))?,
            ))
        })
        .collect()
}

fn meminfo_kib(meminfo: &str, name: &str) -> Result<i64> {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("/proc/meminfo has no {name}"))
}

/// Pages in the lists of all CPUs and zones.
fn reserved_kib(zoneinfo: &str) -> Result<i64> {
    let page = rustix::param::page_size() as i64 / 1024;
    zoneinfo
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("count:"))
        .map(|count| {
            let pages: i64 = count
                .trim()
                .parse()
                .with_context(|| format!("{count:?} is no number of pages"))?;
            Ok(pages * page)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_in_use_are_read_by_cache() {
        let text = "slabinfo - version: 2.1\n\
            # name            <active_objs> <num_objs> <objsize> <objperslab>\n\
            kvm_vcpu              3      4  12840    2    8 : tunables    0    0    0\n";
        let read = objects(text).unwrap();
        assert_eq!(read, BTreeMap::from([("kvm_vcpu".to_owned(), 3)]));
    }

    #[test]
    fn reserves_of_all_zones_are_summed() {
        let text = "Node 0, zone      DMA\n  pages free     3840\n  pagesets\n    cpu: 0\n\
            \x20             count:    2\n              high:     0\n\
            Node 0, zone    DMA32\n  pagesets\n    cpu: 0\n              count:    500\n";
        let page = rustix::param::page_size() as i64 / 1024;
        assert_eq!(reserved_kib(text).unwrap(), 502 * page);
    }

    #[test]
    fn meminfo_is_read_by_name() {
        let text = "MemFree:          100 kB\nSUnreclaim:       4711 kB\n";
        assert_eq!(meminfo_kib(text, "SUnreclaim:").unwrap(), 4711);
        assert!(meminfo_kib(text, "VmallocUsed:").is_err());
    }
}
