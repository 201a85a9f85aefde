//! What the CPUID instruction answers in the guest: what KVM supports on this
//! host, made consistent for each vCPU.

mod descriptors;
mod topology;

use hypervisor::x86::CpuidEntry;

pub use topology::Topology;

const LEAF_HIGHEST: u32 = 0x0;
const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES: u32 = 0x4;
const LEAF_EXTENDED_FEATURES: u32 = 0x7;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_EXT_HIGHEST: u32 = 0x8000_0000;
const LEAF_EXT_FEATURES: u32 = 0x8000_0001;
const LEAF_ADDRESS_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

// CPUID.1:ECX.
const VMX: u32 = 1 << 5;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
// CPUID.1:EDX.
const MTRR: u32 = 1 << 12;
const HTT: u32 = 1 << 28;
// CPUID.(7,0):EDX.
const ARCH_CAPABILITIES: u32 = 1 << 29;
// CPUID.80000001:ECX.
const SVM: u32 = 1 << 2;
const CMP_LEGACY: u32 = 1 << 1;
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

// CPUID.40000001:EAX. KVM leaves it to the VMM, whose messages carry the ids.
const MSI_EXT_DEST_ID: u32 = 1 << 15;

/// The highest id of a local APIC in xAPIC mode; 255 means all of them.
pub const MAX_XAPIC_ID: u32 = 254;

/// What the guest is to see beyond what the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuProfile {
    /// How vCPUs make up cores and packages.
    pub topology: Topology,
    /// Upper bound of the physical address width.
    pub max_phys_bits: u8,
    /// The guest may run guests of its own.
    pub nested: bool,
    /// The local APIC has a deadline timer.
    pub tsc_deadline: bool,
    /// The guest expects a PC: memory type ranges are announced, and local APICs
    /// start in xAPIC mode. Linux needs neither; without real devices behind
    /// it, its reading of the ranges is 60 wasted exits per vCPU.
    pub is_pc: bool,
    /// Some local APIC has an id above [`MAX_XAPIC_ID`].
    pub wide_apic_ids: bool,
}

/// Width of physical addresses on the host; without the leaf, 36 bits.
#[must_use]
pub fn physical_address_bits(supported: &[CpuidEntry]) -> u8 {
    let leaf = supported
        .iter()
        .find(|leaf| leaf.function == LEAF_ADDRESS_SIZES);
    leaf.map_or(36, |leaf| leaf.eax as u8)
}

/// The leaves of vCPU `id`, from what the host supports.
#[must_use]
pub fn for_vcpu(supported: &[CpuidEntry], profile: &CpuProfile, id: u32) -> Vec<CpuidEntry> {
    let apic_id = profile.topology.apic_id(id);
    let mut leaves: Vec<CpuidEntry> = supported
        .iter()
        .filter(|leaf| !matches!(leaf.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2))
        .copied()
        .collect();
    let vendor = supported.iter().find(|leaf| leaf.function == LEAF_HIGHEST);
    let is_intel = vendor.is_some_and(is_intel);
    // What cores and dies are, each maker's processors tell in a leaf of their
    // own. A guest that sees neither is not asked to read them.
    if profile.topology.has_levels() {
        if is_intel {
            raise(&mut leaves, LEAF_HIGHEST, LEAF_TOPOLOGY_V2);
        } else {
            add_amd_topology(&mut leaves);
        }
    }
    // Only the topology leaves have room for such an id.
    if profile.wide_apic_ids {
        raise(&mut leaves, LEAF_HIGHEST, LEAF_TOPOLOGY);
        if !is_intel {
            add_amd_topology(&mut leaves);
        }
    }
    for leaf in &mut leaves {
        adjust(leaf, profile, apic_id);
    }
    descriptors::describe_caches(&mut leaves);
    if !is_intel {
        // KVM offers it everywhere, but the register is Intel's.
        for leaf in leaves
            .iter_mut()
            .filter(|leaf| leaf.function == LEAF_EXTENDED_FEATURES && leaf.index == 0)
        {
            leaf.edx &= !ARCH_CAPABILITIES;
        }
    }
    let highest = leaves.iter().find(|leaf| leaf.function == LEAF_HIGHEST);
    let highest = highest.map_or(0, |leaf| leaf.eax);
    for function in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] {
        if highest >= function {
            leaves.extend(profile.topology.leaves(function, apic_id));
        }
    }
    leaves
}

/// Makes `function` one of the leaves that `list` says there are.
fn raise(leaves: &mut [CpuidEntry], list: u32, function: u32) {
    for leaf in leaves.iter_mut().filter(|leaf| leaf.function == list) {
        leaf.eax = leaf.eax.max(function);
    }
}

/// Gives AMD's processors the leaf about their threads and dies, where the host
/// does not have it. It is nothing but numbers.
fn add_amd_topology(leaves: &mut Vec<CpuidEntry>) {
    raise(leaves, LEAF_EXT_HIGHEST, LEAF_AMD_TOPOLOGY);
    for leaf in leaves
        .iter_mut()
        .filter(|leaf| leaf.function == LEAF_EXT_FEATURES)
    {
        leaf.ecx |= TOPOLOGY_EXTENSIONS;
    }
    if !leaves.iter().any(|leaf| leaf.function == LEAF_AMD_TOPOLOGY) {
        leaves.push(CpuidEntry {
            function: LEAF_AMD_TOPOLOGY,
            ..Default::default()
        });
    }
}

fn is_intel(leaf: &CpuidEntry) -> bool {
    let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"GenuineIntel"
}

fn adjust(leaf: &mut CpuidEntry, profile: &CpuProfile, apic_id: u32) {
    let topology = &profile.topology;
    let threads = topology.threads_per_package();
    let siblings = 1u32 << topology.package_shift();
    match leaf.function {
        LEAF_FEATURES => {
            // CLFLUSH size is the host's; the rest of EBX is the vCPU's own.
            leaf.ebx = (leaf.ebx & 0xff00) | (siblings.min(255) << 16) | (apic_id << 24);
            leaf.ecx |= HYPERVISOR | X2APIC;
            set(&mut leaf.ecx, TSC_DEADLINE, profile.tsc_deadline);
            if !profile.nested {
                leaf.ecx &= !VMX;
            }
            set(&mut leaf.edx, HTT, threads > 1);
            if !profile.is_pc {
                leaf.edx &= !MTRR;
            }
        }
        LEAF_CACHES | LEAF_AMD_CACHES if leaf.eax & 0x1f != 0 => {
            let level = (leaf.eax >> 5) & 7;
            // First and second level belong to a core, the rest to a die.
            let sharing = match level {
                0..=2 => 1 << topology.core_shift(),
                _ => 1 << topology.die_shift(),
            };
            leaf.eax = (leaf.eax & 0x3fff) | ((sharing - 1) << 14);
            if leaf.function == LEAF_CACHES {
                let cores = siblings >> topology.core_shift();
                leaf.eax |= (cores.min(64) - 1) << 26;
            }
        }
        LEAF_KVM_FEATURES if profile.wide_apic_ids => leaf.eax |= MSI_EXT_DEST_ID,
        LEAF_EXT_FEATURES => {
            if !profile.nested {
                leaf.ecx &= !SVM;
            }
            if threads == 1 {
                leaf.ecx &= !CMP_LEGACY;
            }
        }
        LEAF_ADDRESS_SIZES => {
            let bits = (leaf.eax & 0xff).min(u32::from(profile.max_phys_bits));
            leaf.eax = (leaf.eax & !0xff) | bits;
            leaf.ecx =
                (leaf.ecx & !0xf0ff) | (topology.package_shift() << 12) | (threads - 1).min(255);
        }
        LEAF_AMD_TOPOLOGY => {
            leaf.eax = apic_id;
            let core = topology.core_of(apic_id);
            leaf.ebx = (core & 0xff) | ((topology.threads_per_core - 1) << 8);
            leaf.ecx =
                (topology.die_of(apic_id) & 0xff) | ((topology.dies_per_package - 1).min(7) << 8);
        }
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

/// KVM_CPUID_FLAG_SIGNIFCANT_INDEX: ECX is part of the question.
const SIGNIFICANT_INDEX: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(vcpus: u32) -> CpuProfile {
        CpuProfile {
            topology: Topology::flat(vcpus),
            max_phys_bits: 46,
            nested: true,
            tsc_deadline: true,
            is_pc: false,
            wide_apic_ids: false,
        }
    }

    fn host() -> Vec<CpuidEntry> {
        let leaf = |function, eax, ebx, ecx, edx| CpuidEntry {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        vec![
            leaf(0, 0xd, 0, 0, 0),
            leaf(1, 0x306d4, 0x0310_0800, VMX, HTT | MTRR),
            leaf(4, 0x1c00_4121, 0, 0, 0),
            leaf(7, 0, 0, 0, ARCH_CAPABILITIES),
            leaf(0xb, 1, 2, 0x100, 3),
            leaf(0x8000_0000, 0x8000_0008, 0, 0, 0),
            leaf(0x8000_0001, 0, 0, SVM, 0),
            leaf(0x8000_0008, 0x3030, 0, 7, 0),
        ]
    }

    fn find(leaves: &[CpuidEntry], function: u32, index: u32) -> CpuidEntry {
        *leaves
            .iter()
            .find(|leaf| leaf.function == function && leaf.index == index)
            .unwrap()
    }

    #[test]
    fn each_vcpu_sees_its_own_number_everywhere() {
        for id in 0..4 {
            let leaves = for_vcpu(&host(), &profile(4), id);
            assert_eq!(find(&leaves, 1, 0).ebx, 0x0004_0800 | id << 24);
            for index in 0..3 {
                assert_eq!(find(&leaves, 0xb, index).edx, id);
            }
            assert_eq!(find(&leaves, 0xb, 1).eax, 2);
        }
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let leaves = for_vcpu(&host(), &profile(1), 0);
        let features = find(&leaves, 1, 0);
        assert_eq!(features.edx & HTT, 0);
        assert_eq!(features.ecx & (HYPERVISOR | X2APIC), HYPERVISOR | X2APIC);
        assert_eq!(find(&leaves, 4, 0).eax, 0x121);
        assert_eq!(find(&leaves, 0x8000_0008, 0).ecx, 0);
    }

    fn intel() -> Vec<CpuidEntry> {
        let mut host = host();
        let name = b"GenuineIntel";
        let part = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        (host[0].ebx, host[0].edx, host[0].ecx) = (part(0), part(4), part(8));
        host
    }

    #[test]
    fn arch_capabilities_are_for_intel_alone() {
        assert_eq!(find(&for_vcpu(&host(), &profile(1), 0), 7, 0).edx, 0);
        let leaf = find(&for_vcpu(&intel(), &profile(1), 0), 7, 0);
        assert_eq!(leaf.edx, ARCH_CAPABILITIES);
    }

    #[test]
    fn threads_and_dies_are_told_in_the_makers_own_leaf() {
        let mut profile = profile(1);
        profile.topology = Topology {
            threads_per_core: 2,
            cores_per_die: 3,
            dies_per_package: 2,
        };
        // The sixth core of the second package, its second thread.
        let amd = for_vcpu(&host(), &profile, 23);
        let topology = find(&amd, 0x8000_001e, 0);
        assert_eq!(
            (topology.eax, topology.ebx, topology.ecx),
            (0x1d, 0x106, 0x103)
        );
        assert_eq!(find(&amd, 0x8000_0000, 0).eax, 0x8000_001e);
        let features = find(&amd, 0x8000_0001, 0).ecx;
        assert_eq!(features & TOPOLOGY_EXTENSIONS, TOPOLOGY_EXTENSIONS);
        assert!(amd.iter().all(|leaf| leaf.function != 0x1f));
        let intel = for_vcpu(&intel(), &profile, 23);
        assert_eq!(find(&intel, 0, 0).eax, 0x1f);
        let die = find(&intel, 0x1f, 2);
        assert_eq!((die.eax, die.ebx, die.edx), (4, 12, 0x1d));
        assert!(intel.iter().all(|leaf| leaf.function != 0x8000_001e));
    }

    #[test]
    fn id_that_the_first_leaf_has_no_room_for_is_in_the_topology_leaves() {
        let mut profile = profile(300);
        profile.wide_apic_ids = true;
        let mut host = host();
        host[0].eax = 7;
        host.push(CpuidEntry {
            function: 0x4000_0001,
            ..Default::default()
        });
        let leaves = for_vcpu(&host, &profile, 299);
        assert_eq!(find(&leaves, 0, 0).eax, 0xb);
        for index in 0..3 {
            assert_eq!(find(&leaves, 0xb, index).edx, 299);
        }
        assert_eq!(find(&leaves, 0x8000_001e, 0).eax, 299);
        assert_eq!(find(&leaves, 0x4000_0001, 0).eax, MSI_EXT_DEST_ID);
    }

    #[test]
    fn cores_alone_need_no_leaf_that_the_host_does_not_have() {
        for host in [host(), intel()] {
            let leaves = for_vcpu(&host, &profile(4), 0);
            assert_eq!(find(&leaves, 0, 0).eax, 0xd);
            assert_eq!(find(&leaves, 0x8000_0001, 0).ecx, SVM);
        }
    }

    #[test]
    fn memory_type_ranges_are_announced_where_they_are_needed() {
        let mut profile = profile(1);
        assert_eq!(find(&for_vcpu(&host(), &profile, 0), 1, 0).edx & MTRR, 0);
        profile.is_pc = true;
        assert_eq!(find(&for_vcpu(&host(), &profile, 0), 1, 0).edx & MTRR, MTRR);
    }

    #[test]
    fn what_is_switched_off_is_not_announced() {
        let mut profile = profile(2);
        profile.nested = false;
        profile.tsc_deadline = false;
        profile.max_phys_bits = 40;
        let leaves = for_vcpu(&host(), &profile, 0);
        assert_eq!(find(&leaves, 1, 0).ecx & (VMX | TSC_DEADLINE), 0);
        assert_eq!(find(&leaves, 0x8000_0001, 0).ecx & SVM, 0);
        assert_eq!(find(&leaves, 0x8000_0008, 0).eax, 0x3028);
    }
}
