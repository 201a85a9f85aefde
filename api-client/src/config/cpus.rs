//! Virtual CPUs.

use serde::{Deserialize, Serialize};

/// Physical address bits that a guest is offered at most, unless configured.
pub const DEFAULT_MAX_PHYS_BITS: u8 = 46;

/// Virtual CPUs: how many, how they are arranged, what they offer.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "CpusWire")]
pub struct CpusConfig {
    /// CPUs present at boot.
    pub boot_vcpus: u32,
    /// CPUs that can be present at all; `boot_vcpus` if absent.
    pub max_vcpus: u32,
    /// Arrangement in sockets, dies, cores and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
    /// Whether to offer KVM's Hyper-V enlightenments.
    pub kvm_hyperv: bool,
    /// Upper bound of the physical address width.
    pub max_phys_bits: u8,
    /// Host CPUs that each virtual CPU may run on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Vec<CpuAffinity>>,
    /// Features that are off unless asked for.
    pub features: CpuFeatures,
    /// Whether the guest may run guests of its own.
    pub nested: bool,
    /// Which vCPU threads may share a core.
    pub core_scheduling: CoreScheduling,
    /// CPU model to present.
    pub profile: CpuProfile,
}

impl Default for CpusConfig {
    fn default() -> Self {
        CpusWire::default().into()
    }
}

// The wire form: only here can `max_vcpus` be told apart from absent.
#[cfg_attr(test, derive(schemars::JsonSchema, Serialize))]
#[derive(Deserialize)]
#[serde(default)]
struct CpusWire {
    /// CPUs present at boot.
    boot_vcpus: u32,
    /// CPUs that can be present at all; `boot_vcpus` if absent.
    max_vcpus: Option<u32>,
    /// Arrangement in sockets, dies, cores and threads.
    topology: Option<CpuTopology>,
    /// Whether to offer KVM's Hyper-V enlightenments.
    kvm_hyperv: bool,
    /// Upper bound of the physical address width.
    max_phys_bits: u8,
    /// Host CPUs that each virtual CPU may run on.
    affinity: Option<Vec<CpuAffinity>>,
    /// Features that are off unless asked for.
    features: CpuFeatures,
    /// Whether the guest may run guests of its own.
    nested: bool,
    /// Which vCPU threads may share a core.
    core_scheduling: CoreScheduling,
    /// CPU model to present.
    profile: CpuProfile,
}

impl Default for CpusWire {
    fn default() -> Self {
        CpusWire {
            boot_vcpus: 1,
            max_vcpus: None,
            topology: None,
            kvm_hyperv: false,
            max_phys_bits: DEFAULT_MAX_PHYS_BITS,
            affinity: None,
            features: CpuFeatures::default(),
            nested: true,
            core_scheduling: CoreScheduling::default(),
            profile: CpuProfile::default(),
        }
    }
}

impl From<CpusWire> for CpusConfig {
    fn from(wire: CpusWire) -> Self {
        CpusConfig {
            boot_vcpus: wire.boot_vcpus,
            max_vcpus: wire.max_vcpus.unwrap_or(wire.boot_vcpus),
            topology: wire.topology,
            kvm_hyperv: wire.kvm_hyperv,
            max_phys_bits: wire.max_phys_bits,
            affinity: wire.affinity,
            features: wire.features,
            nested: wire.nested,
            core_scheduling: wire.core_scheduling,
            profile: wire.profile,
        }
    }
}

/// Arrangement of the virtual CPUs.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTopology {
    /// Threads in a core.
    pub threads_per_core: u16,
    /// Cores in a die.
    pub cores_per_die: u16,
    /// Dies in a package.
    pub dies_per_package: u16,
    /// Packages in the machine.
    pub packages: u16,
}

/// Host CPUs that one virtual CPU may run on.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuAffinity {
    /// The virtual CPU.
    pub vcpu: u32,
    /// The host's CPUs.
    pub host_cpus: Vec<usize>,
}

/// CPU features that are off unless asked for.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuFeatures {
    /// Advanced Matrix Extensions.
    pub amx: bool,
}

/// Which vCPU threads the host's scheduler may put on one core together.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CoreScheduling {
    /// Threads of the same virtual machine only.
    #[default]
    Vm,
    /// Each vCPU thread alone.
    Vcpu,
    /// No restriction.
    Off,
}

/// CPU model that the guest sees.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuProfile {
    /// What the host has and KVM supports.
    #[default]
    Host,
}
