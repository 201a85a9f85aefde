//! Threads, cores, dies and packages: the numbers of local APICs, and the
//! leaves that take them apart.

use hypervisor::x86::CpuidEntry;

use super::{LEAF_TOPOLOGY_V2, SIGNIFICANT_INDEX};

// Level types (Intel SDM, volume 2, CPUID, leaf 0x1f).
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;
const LEVEL_DIE: u32 = 5;

/// How many of each there are in the next larger one; none is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Threads that share a core.
    pub threads_per_core: u32,
    /// Cores of a die.
    pub cores_per_die: u32,
    /// Dies of a package.
    pub dies_per_package: u32,
}

impl Topology {
    /// One package with so many cores.
    #[must_use]
    pub fn flat(cores: u32) -> Self {
        Self {
            threads_per_core: 1,
            cores_per_die: cores,
            dies_per_package: 1,
        }
    }

    /// Logical processors of one package.
    #[must_use]
    pub fn threads_per_package(&self) -> u32 {
        self.threads_per_core * self.cores_per_die * self.dies_per_package
    }

    /// Whether there is more to tell than how many cores a package has.
    pub(super) fn has_levels(&self) -> bool {
        self.threads_per_core > 1 || self.dies_per_package > 1
    }

    /// Bits of an APIC's number below the core's.
    pub(super) fn core_shift(&self) -> u32 {
        bits_for(self.threads_per_core)
    }

    /// Bits below the die's.
    pub(super) fn die_shift(&self) -> u32 {
        self.core_shift() + bits_for(self.cores_per_die)
    }

    /// Bits below the package's.
    pub(super) fn package_shift(&self) -> u32 {
        self.die_shift() + bits_for(self.dies_per_package)
    }

    /// The number of a vCPU's local APIC: each level has bits of its own, so
    /// that numbers are left out where a level is no power of two.
    #[must_use]
    pub fn apic_id(&self, vcpu: u32) -> u32 {
        let thread = vcpu % self.threads_per_core;
        let core = vcpu / self.threads_per_core;
        let die = core / self.cores_per_die;
        let package = die / self.dies_per_package;
        thread
            | (core % self.cores_per_die) << self.core_shift()
            | (die % self.dies_per_package) << self.die_shift()
            | package << self.package_shift()
    }

    /// The die of an APIC, counted through all packages.
    pub(super) fn die_of(&self, apic_id: u32) -> u32 {
        let dies = bits_for(self.dies_per_package);
        let package = apic_id >> self.package_shift();
        let die = (apic_id >> self.die_shift()) & ((1 << dies) - 1);
        package * self.dies_per_package + die
    }

    /// The core of an APIC within its package.
    pub(super) fn core_of(&self, apic_id: u32) -> u32 {
        (apic_id & ((1 << self.package_shift()) - 1)) >> self.core_shift()
    }

    /// The subleaves of a topology leaf: one for each level, and the end.
    pub(super) fn leaves(&self, function: u32, apic_id: u32) -> Vec<CpuidEntry> {
        let cores = self.threads_per_core * self.cores_per_die;
        let all = self.threads_per_package();
        let thread = (LEVEL_THREAD, self.core_shift(), self.threads_per_core);
        let levels = match function {
            LEAF_TOPOLOGY_V2 => vec![
                thread,
                (LEVEL_CORE, self.die_shift(), cores),
                (LEVEL_DIE, self.package_shift(), all),
                (0, 0, 0),
            ],
            // The older leaf knows no dies: the cores fill the package.
            _ => vec![thread, (LEVEL_CORE, self.package_shift(), all), (0, 0, 0)],
        };
        (0..)
            .zip(levels)
            .map(|(index, (kind, shift, count))| CpuidEntry {
                function,
                index,
                flags: SIGNIFICANT_INDEX,
                eax: shift,
                ebx: count,
                ecx: (kind << 8) | index,
                edx: apic_id,
            })
            .collect()
    }
}

/// Bits that number `count` things from zero.
fn bits_for(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn topology(threads: u32, cores: u32, dies: u32) -> Topology {
        Topology {
            threads_per_core: threads,
            cores_per_die: cores,
            dies_per_package: dies,
        }
    }

    #[test]
    fn numbers_are_dense_where_every_level_is_a_power_of_two() {
        for vcpu in 0..64 {
            assert_eq!(topology(2, 4, 2).apic_id(vcpu), vcpu);
        }
    }

    #[test]
    fn three_cores_take_the_place_of_four() {
        let ids: Vec<u32> = (0..12).map(|id| topology(2, 3, 1).apic_id(id)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!(topology(2, 3, 1).core_of(13), 2);
    }

    #[test]
    fn every_possible_topology_numbers_its_vcpus_differently_in_seven_bits() {
        for threads in 1..=64 {
            for cores in 1..=64 / threads {
                for dies in 1..=64 / threads / cores {
                    let topology = topology(threads, cores, dies);
                    let ids: BTreeSet<u32> = (0..64).map(|id| topology.apic_id(id)).collect();
                    assert_eq!(ids.len(), 64);
                    let last = 64 / topology.threads_per_package() * topology.threads_per_package();
                    assert!(topology.apic_id(last - 1) < 128, "{topology:?}");
                }
            }
        }
    }

    #[test]
    fn dies_are_a_level_of_the_newer_leaf_alone() {
        let topology = topology(2, 4, 2);
        let shifts = |function| -> Vec<(u32, u32)> {
            let leaves = topology.leaves(function, 0);
            leaves
                .iter()
                .map(|leaf| (leaf.ecx >> 8, leaf.eax))
                .collect()
        };
        assert_eq!(shifts(0xb), [(1, 1), (2, 4), (0, 0)]);
        assert_eq!(shifts(0x1f), [(1, 1), (2, 3), (5, 4), (0, 0)]);
        assert_eq!((topology.die_of(8), topology.die_of(24)), (1, 3));
    }
}
