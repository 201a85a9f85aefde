//! Guest memory, checked: one zone from `--memory`, or the zones of
//! `--memory-zone`.

use std::collections::BTreeSet;

use api_client::config::{MemoryConfig, MemoryZoneConfig};

use super::{ConfigError, check_id};
use crate::memory::{Backing, MAX_RAM_SLOTS, Zone};

/// Less memory than this boots nothing.
pub(super) const MIN_MEMORY: u64 = 16 << 20;
const STEP: u64 = 4096;
const DEFAULT_HUGE_PAGE: u64 = 2 << 20;
/// Each zone takes one of the hypervisor's memory slots, the one that the hole
/// below 4 GiB splits two.
pub(super) const MAX_ZONES: usize = 32;
// The zone around the hole below 4 GiB takes two slots, each other takes one.
const _: () = assert!(MAX_ZONES < MAX_RAM_SLOTS as usize);

/// Why memory is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryConfigError {
    /// Less than anything boots with.
    #[error("{0} bytes of memory are too few, {MIN_MEMORY} is the minimum")]
    TooSmall(u64),
    /// More than an address can name.
    #[error("The memory zones together have more bytes than can be addressed")]
    TooLarge,
    /// Not a multiple of the page size.
    #[error("{size} bytes of memory are no multiple of {step}")]
    Step {
        /// What was asked for.
        size: u64,
        /// What it must be a multiple of.
        step: u64,
    },
    /// A huge page of a size that does not exist.
    #[error("{0} bytes are no huge page size")]
    HugePageSize(u64),
    /// A size of huge pages without huge pages.
    #[error("A huge page size is given, but huge pages are off")]
    HugePageSizeAlone,
    /// Both sharings.
    #[error("Memory cannot be both shared and mergeable")]
    SharedAndMergeable,
    /// Two answers to one question.
    #[error("Memory has a size of its own and zones: with zones, its size is 0")]
    SizeAndZones,
    /// Backing that the zones do not have.
    #[error("Memory that is made of zones gets its backing from them: leave out {0}")]
    BackingBesideZones(&'static str),
    /// A zone without a name.
    #[error("A memory zone needs an id")]
    NoZoneId,
    /// Two zones of one name.
    #[error("There are two memory zones {0}")]
    SameZone(String),
    /// An empty zone.
    #[error("Memory zone {0} has no bytes")]
    EmptyZone(String),
    /// Too many of them.
    #[error("{0} memory zones are asked for, {MAX_ZONES} are possible")]
    TooManyZones(usize),
    /// A file for huge pages from the pool.
    #[error("Memory zone {0} has a file and huge pages: name a file on a hugetlbfs instead")]
    FileAndHugePages(String),
}

/// The zones of the guest's memory, in the order of their addresses.
pub(super) fn zones(memory: &MemoryConfig) -> Result<Vec<Zone>, ConfigError> {
    let zones = match memory.zones.as_deref() {
        None | Some([]) => vec![Zone {
            size: memory.size,
            backing: backing(&Asked::of_memory(memory))?,
        }],
        Some(zones) => {
            check_beside_zones(memory, zones.len())?;
            let mut names = BTreeSet::new();
            let mut checked = Vec::with_capacity(zones.len());
            for zone in zones {
                if !names.insert(zone.id.as_str()) {
                    return Err(MemoryConfigError::SameZone(zone.id.clone()).into());
                }
                checked.push(one_zone(zone)?);
            }
            checked
        }
    };
    let total = zones
        .iter()
        .try_fold(0u64, |sum, zone| sum.checked_add(zone.size))
        .filter(|&sum| sum <= i64::MAX as u64)
        .ok_or(MemoryConfigError::TooLarge)?;
    if total < MIN_MEMORY {
        return Err(MemoryConfigError::TooSmall(total).into());
    }
    Ok(zones)
}

/// Bytes that the guest has, of a configuration that was or will be checked.
pub fn total(memory: &MemoryConfig) -> u64 {
    let zones = memory.zones.iter().flatten();
    zones.fold(memory.size, |sum, zone| sum.saturating_add(zone.size))
}

fn check_beside_zones(memory: &MemoryConfig, zones: usize) -> Result<(), MemoryConfigError> {
    if memory.size != 0 {
        return Err(MemoryConfigError::SizeAndZones);
    }
    let given = [
        (memory.mergeable, "mergeable"),
        (memory.shared, "shared"),
        (memory.hugepages, "hugepages"),
        (memory.hugepage_size.is_some(), "hugepage_size"),
        (memory.prefault, "prefault"),
        (memory.reserve, "reserve"),
    ];
    if let Some((_, name)) = given.into_iter().find(|(given, _)| *given) {
        return Err(MemoryConfigError::BackingBesideZones(name));
    }
    if zones > MAX_ZONES {
        return Err(MemoryConfigError::TooManyZones(zones));
    }
    Ok(())
}

fn one_zone(zone: &MemoryZoneConfig) -> Result<Zone, ConfigError> {
    let named = |error: fn(String) -> MemoryConfigError| error(zone.id.clone()).into();
    if zone.id.is_empty() {
        return Err(MemoryConfigError::NoZoneId.into());
    }
    check_id(&zone.id)?;
    if zone.hotplug_size.is_some_and(|size| size > 0)
        || zone.hotplugged_size.is_some_and(|size| size > 0)
    {
        return Err(ConfigError::Unsupported(
            "memory.zones.hotplug_size (adding memory to a running VM)".into(),
        ));
    }
    if zone.size == 0 {
        return Err(named(MemoryConfigError::EmptyZone));
    }
    if zone.file.is_some() && zone.hugepages {
        return Err(named(MemoryConfigError::FileAndHugePages));
    }
    let asked = Asked {
        size: zone.size,
        shared: zone.shared,
        mergeable: zone.mergeable,
        hugepages: zone.hugepages,
        hugepage_size: zone.hugepage_size,
        prefault: zone.prefault,
        reserve: zone.reserve,
        thp: true,
    };
    Ok(Zone {
        size: zone.size,
        backing: Backing {
            file: zone.file.clone(),
            host_numa_node: zone.host_numa_node,
            ..backing(&asked)?
        },
    })
}

/// What memory and a zone of it have in common.
struct Asked {
    size: u64,
    shared: bool,
    mergeable: bool,
    hugepages: bool,
    hugepage_size: Option<u64>,
    prefault: bool,
    reserve: bool,
    thp: bool,
}

impl Asked {
    fn of_memory(memory: &MemoryConfig) -> Self {
        Self {
            size: memory.size,
            shared: memory.shared,
            mergeable: memory.mergeable,
            hugepages: memory.hugepages,
            hugepage_size: memory.hugepage_size,
            prefault: memory.prefault,
            reserve: memory.reserve,
            thp: memory.thp,
        }
    }
}

fn backing(asked: &Asked) -> Result<Backing, MemoryConfigError> {
    if asked.shared && asked.mergeable {
        return Err(MemoryConfigError::SharedAndMergeable);
    }
    let step = match (asked.hugepages, asked.hugepage_size) {
        (false, None) => STEP,
        (false, Some(_)) => return Err(MemoryConfigError::HugePageSizeAlone),
        (true, None) => DEFAULT_HUGE_PAGE,
        (true, Some(size)) if size.is_power_of_two() && (STEP..=1 << 34).contains(&size) => size,
        (true, Some(size)) => return Err(MemoryConfigError::HugePageSize(size)),
    };
    if !asked.size.is_multiple_of(step) {
        return Err(MemoryConfigError::Step {
            size: asked.size,
            step,
        });
    }
    Ok(Backing {
        shared: asked.shared,
        hugepages: asked.hugepages,
        hugepage_size: asked.hugepage_size,
        thp: asked.thp,
        mergeable: asked.mergeable,
        prefault: asked.prefault,
        reserve: asked.reserve,
        file: None,
        host_numa_node: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(change: fn(&mut MemoryConfig)) -> Result<Vec<Zone>, ConfigError> {
        let mut memory = MemoryConfig::default();
        change(&mut memory);
        zones(&memory)
    }

    fn two(change: fn(&mut MemoryConfig, &mut MemoryZoneConfig)) -> Result<Vec<Zone>, ConfigError> {
        let first = MemoryZoneConfig {
            id: "fast".into(),
            size: 64 << 20,
            hugepages: true,
            ..MemoryZoneConfig::default()
        };
        let mut second = MemoryZoneConfig {
            id: "kept".into(),
            size: 192 << 20,
            file: Some("/mem".into()),
            shared: true,
            host_numa_node: Some(0),
            ..MemoryZoneConfig::default()
        };
        let mut memory = MemoryConfig {
            size: 0,
            ..MemoryConfig::default()
        };
        change(&mut memory, &mut second);
        memory.zones = Some(vec![first, second]);
        zones(&memory)
    }

    #[test]
    fn memory_is_whole_pages_and_enough() {
        use MemoryConfigError as E;
        type Change = fn(&mut MemoryConfig);
        let refused: [(Change, E); 6] = [
            (|m| m.size = 1 << 20, E::TooSmall(1 << 20)),
            (
                |m| m.size += 1,
                E::Step {
                    size: (512 << 20) + 1,
                    step: 4096,
                },
            ),
            (
                |m| (m.size, m.hugepages) = ((256 << 20) + 4096, true),
                E::Step {
                    size: (256 << 20) + 4096,
                    step: 2 << 20,
                },
            ),
            (
                |m| (m.hugepages, m.hugepage_size) = (true, Some(3 << 20)),
                E::HugePageSize(3 << 20),
            ),
            (|m| m.hugepage_size = Some(2 << 20), E::HugePageSizeAlone),
            (
                |m| (m.shared, m.mergeable) = (true, true),
                E::SharedAndMergeable,
            ),
        ];
        for (change, error) in refused {
            assert_eq!(one(change), Err(error.into()));
        }
        assert!(one(|m| m.size = !4095).is_err());
        assert_eq!(one(|_| {}).unwrap()[0].size, 512 << 20);
    }

    #[test]
    fn each_zone_has_its_own_size_and_backing() {
        let zones = two(|_, _| {}).unwrap();
        let sizes: Vec<u64> = zones.iter().map(|zone| zone.size >> 20).collect();
        assert_eq!(sizes, [64, 192]);
        assert!(zones[0].backing.hugepages && !zones[0].backing.shared);
        assert_eq!(zones[1].backing.file.as_deref(), Some("/mem".as_ref()));
        assert!(zones[1].backing.shared && zones[1].backing.host_numa_node == Some(0));
    }

    #[test]
    fn zones_that_contradict_are_refused() {
        use MemoryConfigError as E;
        type Change = fn(&mut MemoryConfig, &mut MemoryZoneConfig);
        let refused: [(Change, E); 6] = [
            (|m, _| m.size = 512 << 20, E::SizeAndZones),
            (|m, _| m.prefault = true, E::BackingBesideZones("prefault")),
            (|_, z| z.id.clear(), E::NoZoneId),
            (|_, z| z.id = "fast".into(), E::SameZone("fast".into())),
            (|_, z| z.size = 0, E::EmptyZone("kept".into())),
            (
                |_, z| z.hugepages = true,
                E::FileAndHugePages("kept".into()),
            ),
        ];
        for (change, error) in refused {
            assert_eq!(two(change), Err(error.into()));
        }
        assert!(two(|_, z| z.hotplug_size = Some(1 << 30)).is_err());
        assert!(two(|_, z| z.size = !4095).is_err());
    }
}
