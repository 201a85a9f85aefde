//! A vCPU's exit counters as a whole, got and set through the attribute that
//! version 2 of the patched KVM's interface has: `docs/abi.md`.

use instrumentation::snapshot::ReasonArrays;
use instrumentation::table::{Isa, STATS_SLOTS};
use kvm_bindings::kvm_device_attr;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::vcpu::KVMIO;
use crate::traits::{Error, Result};
use crate::x86::state::ExitCountersState;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

/// Group of the attribute, far from KVM's own numbers.
const KVM_VCPU_EXIT_STATS: u32 = 0x4558_5354;
/// The attribute itself.
const KVM_VCPU_EXIT_STATS_COUNTERS: u64 = 0;

const ISA_VMX: u16 = 1;
const ISA_SVM: u16 = 2;

/// `struct kvm_exit_stats_counters` of the kernel side.
#[repr(C)]
#[derive(Clone)]
struct Counters {
    size: u32,
    isa: u16,
    slots: u16,
    exits: u64,
    guest_cycles: u64,
    arrays: [[u64; STATS_SLOTS]; 5],
}

const SIZE: u32 = 24 + 5 * 8 * STATS_SLOTS as u32;
const _: () = assert!(size_of::<Counters>() == SIZE as usize);

impl Counters {
    fn empty() -> Box<Counters> {
        Box::new(Counters {
            size: SIZE,
            isa: 0,
            slots: STATS_SLOTS as u16,
            exits: 0,
            guest_cycles: 0,
            arrays: [[0; STATS_SLOTS]; 5],
        })
    }
}

impl From<&Counters> for ExitCountersState {
    fn from(counters: &Counters) -> Self {
        let [exits, cycles, blocked, userspace, preempted] = &counters.arrays;
        ExitCountersState {
            isa: match counters.isa {
                ISA_VMX => Some(Isa::Vmx),
                ISA_SVM => Some(Isa::Svm),
                _ => None,
            },
            exits: counters.exits,
            guest_cycles: counters.guest_cycles,
            arrays: ReasonArrays {
                exits: exits.to_vec(),
                cycles: cycles.to_vec(),
                blocked_cycles: blocked.to_vec(),
                userspace_cycles: userspace.to_vec(),
                preempted_cycles: preempted.to_vec(),
            },
        }
    }
}

impl TryFrom<&ExitCountersState> for Box<Counters> {
    type Error = Error;

    fn try_from(state: &ExitCountersState) -> Result<Self> {
        let ExitCountersState {
            isa,
            exits,
            guest_cycles,
            arrays,
        } = state;
        let ReasonArrays {
            exits: exits_by_reason,
            cycles,
            blocked_cycles,
            userspace_cycles,
            preempted_cycles,
        } = arrays;
        let mut counters = Counters::empty();
        counters.isa = match isa {
            Some(Isa::Vmx) => ISA_VMX,
            Some(Isa::Svm) => ISA_SVM,
            None => 0,
        };
        counters.exits = *exits;
        counters.guest_cycles = *guest_cycles;
        for (array, from) in counters.arrays.iter_mut().zip([
            exits_by_reason,
            cycles,
            blocked_cycles,
            userspace_cycles,
            preempted_cycles,
        ]) {
            *array = from[..]
                .try_into()
                .map_err(|_| Error::ExitCounters("an array has another length"))?;
        }
        Ok(counters)
    }
}

fn attribute(address: u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_EXIT_STATS,
        attr: KVM_VCPU_EXIT_STATS_COUNTERS,
        addr: address,
        flags: 0,
    }
}

fn is_there(vcpu: &VcpuFd) -> bool {
    // SAFETY: an open vCPU descriptor, and the structure that the request takes;
    // the kernel reads it and writes nothing.
    unsafe { ioctl_with_ref(vcpu, KVM_HAS_DEVICE_ATTR(), &attribute(0)) == 0 }
}

/// The counters of a vCPU that stands still; `None` where the kernel has no such
/// attribute: version 1 of its interface, or none of it.
pub(super) fn get(vcpu: &VcpuFd) -> Result<Option<ExitCountersState>> {
    if !is_there(vcpu) {
        return Ok(None);
    }
    let mut counters = Counters::empty();
    let attribute = attribute(&raw mut *counters as u64);
    // SAFETY:
    // - An open vCPU descriptor, and the structure that the request takes.
    // - The address in it is that of a `Counters`, which stays put and says how
    //   long it is: the kernel writes that many bytes or none.
    // - Any bytes make a valid `Counters`.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) };
    if result != 0 {
        return Err(failed("read the exit counters of a vCPU"));
    }
    if (counters.size, usize::from(counters.slots)) != (SIZE, STATS_SLOTS) {
        return Err(Error::ExitCounters(
            "the kernel has another number of slots",
        ));
    }
    Ok(Some(ExitCountersState::from(&*counters)))
}

/// Sets what [`get`] told.
pub(super) fn set(vcpu: &VcpuFd, state: &ExitCountersState) -> Result<()> {
    if !is_there(vcpu) {
        return Err(Error::MissingCapability(
            "vCPU attribute KVM_VCPU_EXIT_STATS",
        ));
    }
    let counters = Box::<Counters>::try_from(state)?;
    let attribute = attribute(&raw const *counters as u64);
    // SAFETY: as in `get`; the kernel only reads, and checks what it reads.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) };
    match result {
        0 => Ok(()),
        _ => Err(failed("set the exit counters of a vCPU")),
    }
}

fn failed(operation: &'static str) -> Error {
    Error::Ioctl {
        operation,
        source: std::io::Error::last_os_error(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_survive_the_way_to_the_kernel_and_back() {
        let array = |first: u64| (first..).take(STATS_SLOTS).collect::<Vec<_>>();
        let state = ExitCountersState {
            isa: Some(Isa::Svm),
            exits: 9,
            guest_cycles: 8,
            arrays: ReasonArrays {
                exits: array(1000),
                cycles: array(2000),
                blocked_cycles: array(3000),
                userspace_cycles: array(4000),
                preempted_cycles: array(5000),
            },
        };
        let counters = Box::<Counters>::try_from(&state).unwrap();
        assert_eq!(
            (counters.size, counters.isa, counters.slots),
            (6904, 2, 172)
        );
        assert_eq!(ExitCountersState::from(&*counters), state);

        let mut short = state;
        short.arrays.blocked_cycles.pop();
        assert!(Box::<Counters>::try_from(&short).is_err());
    }
}
