//! What the CPUID instruction answers in the guest: what KVM supports on this
//! host, made consistent for each vCPU.

mod descriptors;

use hypervisor::x86::CpuidEntry;

const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES: u32 = 0x4;
const LEAF_EXTENDED_FEATURES: u32 = 0x7;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
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

// Level types of the topology leaves.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// What the guest is to see beyond what the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuProfile {
    /// Threads that share a core; divides the cores of a package.
    pub threads_per_core: u32,
    /// Logical processors of one package.
    pub threads_per_package: u32,
    /// Upper bound of the physical address width.
    pub max_phys_bits: u8,
    /// The guest may run guests of its own.
    pub nested: bool,
    /// The local APIC has a deadline timer.
    pub tsc_deadline: bool,
    /// Memory type ranges are announced. Only firmware needs them; without
    /// real devices behind it, a kernel's reading of them is 60 wasted exits
    /// per vCPU.
    pub memory_type_ranges: bool,
}

impl CpuProfile {
    fn thread_shift(&self) -> u32 {
        bits_for(self.threads_per_core)
    }

    fn package_shift(&self) -> u32 {
        bits_for(self.threads_per_package)
    }

    /// Local APIC number of a vCPU. Numbers are dense, which a topology of
    /// powers of two keeps consistent with the shifts above.
    fn apic_id(&self, vcpu: u32) -> u32 {
        vcpu
    }
}

/// Bits that number `count` things from zero.
fn bits_for(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

/// The leaves of vCPU `id`, from what the host supports.
#[must_use]
pub fn for_vcpu(supported: &[CpuidEntry], profile: &CpuProfile, id: u32) -> Vec<CpuidEntry> {
    let apic_id = profile.apic_id(id);
    let mut leaves: Vec<CpuidEntry> = supported
        .iter()
        .filter(|leaf| !matches!(leaf.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2))
        .copied()
        .collect();
    for leaf in &mut leaves {
        adjust(leaf, profile, apic_id);
    }
    descriptors::describe_caches(&mut leaves);
    let vendor = supported.iter().find(|leaf| leaf.function == 0);
    if !vendor.is_some_and(is_intel) {
        // KVM offers it everywhere, but the register is Intel's.
        for leaf in leaves
            .iter_mut()
            .filter(|leaf| leaf.function == LEAF_EXTENDED_FEATURES && leaf.index == 0)
        {
            leaf.edx &= !ARCH_CAPABILITIES;
        }
    }
    let highest = vendor.map_or(0, |leaf| leaf.eax);
    for function in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] {
        if supported.iter().any(|leaf| leaf.function == function) && highest >= function {
            leaves.extend(topology(function, profile, apic_id));
        }
    }
    leaves
}

fn is_intel(leaf: &CpuidEntry) -> bool {
    let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"GenuineIntel"
}

fn adjust(leaf: &mut CpuidEntry, profile: &CpuProfile, apic_id: u32) {
    let siblings = 1u32 << profile.package_shift();
    match leaf.function {
        LEAF_FEATURES => {
            // CLFLUSH size is the host's; the rest of EBX is the vCPU's own.
            leaf.ebx = (leaf.ebx & 0xff00) | (siblings.min(255) << 16) | (apic_id << 24);
            leaf.ecx |= HYPERVISOR | X2APIC;
            set(&mut leaf.ecx, TSC_DEADLINE, profile.tsc_deadline);
            if !profile.nested {
                leaf.ecx &= !VMX;
            }
            set(&mut leaf.edx, HTT, profile.threads_per_package > 1);
            if !profile.memory_type_ranges {
                leaf.edx &= !MTRR;
            }
        }
        LEAF_CACHES | LEAF_AMD_CACHES if leaf.eax & 0x1f != 0 => {
            let level = (leaf.eax >> 5) & 7;
            // First and second level belong to a core, the rest to a package.
            let sharing = if level <= 2 {
                1 << profile.thread_shift()
            } else {
                siblings
            };
            leaf.eax = (leaf.eax & 0x3fff) | ((sharing - 1) << 14);
            if leaf.function == LEAF_CACHES {
                let cores = siblings >> profile.thread_shift();
                leaf.eax |= (cores.min(64) - 1) << 26;
            }
        }
        LEAF_EXT_FEATURES => {
            if !profile.nested {
                leaf.ecx &= !SVM;
            }
            if profile.threads_per_package == 1 {
                leaf.ecx &= !CMP_LEGACY;
            }
        }
        LEAF_ADDRESS_SIZES => {
            let bits = (leaf.eax & 0xff).min(u32::from(profile.max_phys_bits));
            leaf.eax = (leaf.eax & !0xff) | bits;
            let threads = profile.threads_per_package;
            leaf.ecx = (leaf.ecx & !0xf0ff)
                | (profile.package_shift() << 12)
                | (threads.max(1) - 1).min(255);
        }
        LEAF_AMD_TOPOLOGY => {
            leaf.eax = apic_id;
            let core = apic_id >> profile.thread_shift();
            leaf.ebx = (core & 0xff) | ((profile.threads_per_core.max(1) - 1) << 8);
            leaf.ecx = 0;
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

/// Threads, cores, and the level that ends the list.
fn topology(function: u32, profile: &CpuProfile, apic_id: u32) -> [CpuidEntry; 3] {
    let level = |index: u32, kind: u32, shift: u32, count: u32| CpuidEntry {
        function,
        index,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: (kind << 8) | index,
        edx: apic_id,
        ..Default::default()
    };
    [
        level(
            0,
            LEVEL_THREAD,
            profile.thread_shift(),
            profile.threads_per_core,
        ),
        level(
            1,
            LEVEL_CORE,
            profile.package_shift(),
            profile.threads_per_package,
        ),
        level(2, 0, 0, 0),
    ]
}

/// KVM_CPUID_FLAG_SIGNIFCANT_INDEX: ECX is part of the question.
const SIGNIFICANT_INDEX: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(vcpus: u32) -> CpuProfile {
        CpuProfile {
            threads_per_core: 1,
            threads_per_package: vcpus,
            max_phys_bits: 46,
            nested: true,
            tsc_deadline: true,
            memory_type_ranges: false,
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

    #[test]
    fn arch_capabilities_are_for_intel_alone() {
        let mut host = host();
        assert_eq!(find(&for_vcpu(&host, &profile(1), 0), 7, 0).edx, 0);
        let name = b"GenuineIntel";
        let part = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        (host[0].ebx, host[0].edx, host[0].ecx) = (part(0), part(4), part(8));
        let leaf = find(&for_vcpu(&host, &profile(1), 0), 7, 0);
        assert_eq!(leaf.edx, ARCH_CAPABILITIES);
    }

    #[test]
    fn memory_type_ranges_are_announced_where_they_are_needed() {
        let mut profile = profile(1);
        assert_eq!(find(&for_vcpu(&host(), &profile, 0), 1, 0).edx & MTRR, 0);
        profile.memory_type_ranges = true;
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
