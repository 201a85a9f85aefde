//! The KVM implementation of the traits.

mod convert;
mod exit_counters;
pub(crate) mod kick;
mod vcpu;
mod vcpu_state;
mod vm;

use std::sync::Arc;

use instrumentation::table::Isa;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm};

use crate::traits::{Error, Hypervisor, Result, Vm};
use crate::x86::CpuidEntry;
use vcpu_state::StateSupport;
use vm::KvmVm;

/// The version of the interface that every KVM since 2007 speaks.
const API_VERSION: i32 = 12;

/// The private capability of a KVM that counts exits by reason.
const KVM_CAP_EXIT_STATS: u32 = 0x4558_5354;

/// Without these no guest of ours can run.
const REQUIRED: [(Cap, &str); 9] = [
    (Cap::SplitIrqchip, "SPLIT_IRQCHIP"),
    (Cap::Irqfd, "IRQFD"),
    (Cap::Ioeventfd, "IOEVENTFD"),
    (Cap::IoeventfdNoLength, "IOEVENTFD_NO_LENGTH"),
    (Cap::UserMemory, "USER_MEMORY"),
    (Cap::ReadonlyMem, "READONLY_MEM"),
    (Cap::ImmediateExit, "IMMEDIATE_EXIT"),
    (Cap::SetTssAddr, "SET_TSS_ADDR"),
    (Cap::ExtCpuid, "EXT_CPUID"),
];

/// What the kernel says of its exit accounting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExitStatsSupport {
    raw: u32,
}

impl ExitStatsSupport {
    /// Reads KVM's answer to the capability; nothing but zero comes from a
    /// kernel without it.
    #[must_use]
    pub fn from_raw(raw: i32) -> Self {
        Self {
            raw: u32::try_from(raw).unwrap_or(0),
        }
    }

    /// Version of the kernel's interface; 0 means that KVM is not patched.
    #[must_use]
    pub fn version(self) -> u8 {
        (self.raw & 0xff) as u8
    }

    /// Whose exit reasons are counted.
    #[must_use]
    pub fn isa(self) -> Option<Isa> {
        match (self.raw >> 8) & 0xff {
            1 => Some(Isa::Vmx),
            2 => Some(Isa::Svm),
            _ => None,
        }
    }

    /// The accounting is switched on.
    #[must_use]
    pub fn accounting(self) -> bool {
        self.raw & (1 << 16) != 0
    }

    /// The guest's leaves answer.
    #[must_use]
    pub fn guest_leaves(self) -> bool {
        self.raw & (1 << 17) != 0
    }

    /// Latency histograms are kept.
    #[must_use]
    pub fn latency(self) -> bool {
        self.raw & (1 << 18) != 0
    }
}

/// An open /dev/kvm.
pub struct KvmHypervisor {
    kvm: Kvm,
    isa: Option<Isa>,
    state: Arc<StateSupport>,
}

impl KvmHypervisor {
    /// Opens /dev/kvm and checks that it can do what this program needs.
    pub fn open() -> Result<Self> {
        const PATH: &str = "/dev/kvm";
        let kvm = Kvm::new().map_err(|source| Error::Open {
            path: PATH.into(),
            source: source.into(),
        })?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(Error::ApiVersion(version));
        }
        for (capability, name) in REQUIRED {
            if !kvm.check_extension(capability) {
                return Err(Error::MissingCapability(name));
            }
        }
        let isa = exit_stats(&kvm).isa().or_else(host_isa);
        let state = StateSupport::new(&kvm)?;
        Ok(Self { kvm, isa, state })
    }
}

/// Asked each time: an operator may switch the accounting at any moment.
fn exit_stats(kvm: &Kvm) -> ExitStatsSupport {
    ExitStatsSupport::from_raw(kvm.check_extension_raw(KVM_CAP_EXIT_STATS.into()))
}

impl Hypervisor for KvmHypervisor {
    fn create_vm(&self) -> Result<Arc<dyn Vm>> {
        let fd = self
            .kvm
            .create_vm()
            .map_err(ioctl("create a virtual machine"))?;
        Ok(Arc::new(KvmVm::new(fd, Arc::clone(&self.state))?))
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>> {
        let cpuid = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl("read the supported CPUID leaves"))?;
        Ok(cpuid.as_slice().iter().map(|&leaf| leaf.into()).collect())
    }

    fn has_tsc_deadline_timer(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    fn exit_stats_support(&self) -> ExitStatsSupport {
        exit_stats(&self.kvm)
    }

    fn isa(&self) -> Option<Isa> {
        self.isa
    }
}

/// The instruction set of the processor itself, for kernels that do not say.
fn host_isa() -> Option<Isa> {
    use core::arch::x86_64::__cpuid;
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    if __cpuid(1).ecx & VMX != 0 {
        return Some(Isa::Vmx);
    }
    let top = __cpuid(0x8000_0000).eax;
    if top >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & SVM != 0 {
        return Some(Isa::Svm);
    }
    None
}

/// Names the operation in the error of a failed request.
fn ioctl(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Ioctl {
        operation,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stock_kernel_has_no_accounting() {
        for raw in [0, -1] {
            let support = ExitStatsSupport::from_raw(raw);
            assert_eq!((support.version(), support.isa()), (0, None));
            assert!(!support.accounting() && !support.guest_leaves() && !support.latency());
        }
    }

    #[test]
    fn each_field_of_the_capability_is_read_from_its_own_bits() {
        let support = ExitStatsSupport::from_raw(0x0001_0101);
        assert_eq!((support.version(), support.isa()), (1, Some(Isa::Vmx)));
        assert!(support.accounting() && !support.guest_leaves() && !support.latency());
        let support = ExitStatsSupport::from_raw(0x0006_0203);
        assert_eq!((support.version(), support.isa()), (3, Some(Isa::Svm)));
        assert!(!support.accounting() && support.guest_leaves() && support.latency());
    }
}
