//! Taking the whole state of a vCPU, and setting it on another one.

use std::collections::HashMap;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, Xsave,
    kvm_cpuid_entry2, kvm_device_attr, kvm_lapic_state, kvm_msr_entry, kvm_xcr, kvm_xcrs,
    kvm_xsave, kvm_xsave2,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vmm_sys_util::fam::FamStruct;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::ioctl;
use super::vcpu::KVMIO;
use crate::traits::{Error, Result};
use crate::x86::state::{ClockPolicy, TscState, VcpuState};
use crate::x86::{CpuidEntry, Registers, SpecialRegisters};

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

const MSR_IA32_TSC: u32 = 0x10;
/// Counts only once the local APIC's timer is in deadline mode and the time
/// stamp counter is set: goes last.
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Microsoft's interface, which no guest of ours is offered. Among its registers
/// are clocks, whose values are never the same twice.
const HYPERV_MSRS: RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;

/// Words of the XSAVE area that every kernel has.
const XSAVE_WORDS: usize = size_of::<kvm_xsave>() / size_of::<u32>();

/// The most registers that one request carries (Linux, arch/x86/kvm/x86.c,
/// MAX_IO_MSRS).
const MAX_IO_MSRS: usize = 256;

/// What of this host's KVM decides on the form of a vCPU's state. Shared by
/// all vCPUs of all VMs.
#[derive(Debug)]
pub(super) struct StateSupport {
    /// Model-specific registers that the kernel says must be saved.
    msrs: Vec<u32>,
    has_xcrs: bool,
    has_nested_state: bool,
}

impl StateSupport {
    pub(super) fn new(kvm: &Kvm) -> Result<Arc<Self>> {
        let list = kvm
            .get_msr_index_list()
            .map_err(ioctl("read the list of model-specific registers"))?;
        let mut msrs: Vec<u32> = list.as_slice().to_vec();
        msrs.retain(|msr| *msr != MSR_IA32_TSC && !HYPERV_MSRS.contains(msr));
        // Stable, so that only this one moves.
        msrs.sort_by_key(|&msr| msr == MSR_IA32_TSC_DEADLINE);
        Ok(Arc::new(Self {
            msrs,
            has_xcrs: kvm.check_extension(Cap::Xcrs),
            has_nested_state: kvm.check_extension(Cap::NestedState),
        }))
    }
}

/// The state of a vCPU; see [`Vcpu::state`](crate::Vcpu::state).
pub(super) fn get(fd: &VcpuFd, support: &StateSupport, xsave_size: usize) -> Result<VcpuState> {
    // First: it carries out a start-up message that has arrived, which changes
    // registers.
    let run_state = fd
        .get_mp_state()
        .map_err(ioctl("read a vCPU's run state"))?
        .into();
    let cpuid = fd
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(ioctl("read the CPUID leaves"))?;
    let (registers, special) = registers(fd)?;
    Ok(VcpuState {
        cpuid: without_empty_end(cpuid.as_slice()),
        run_state,
        registers,
        special,
        xsave: get_xsave(fd, xsave_size)?,
        xcrs: get_xcrs(fd, support)?,
        debug: fd
            .get_debug_regs()
            .map_err(ioctl("read the debug registers"))?
            .into(),
        local_apic: get_local_apic(fd)?,
        msrs: get_msrs(fd, &support.msrs)?,
        events: fd
            .get_vcpu_events()
            .map_err(ioctl("read a vCPU's events"))?
            .into(),
        tsc: get_tsc(fd)?,
        nested: get_nested(fd, support)?,
    })
}

/// General, segment, control and table registers.
pub(super) fn registers(fd: &VcpuFd) -> Result<(Registers, SpecialRegisters)> {
    let general = fd.get_regs().map_err(ioctl("read the general registers"))?;
    let special = fd
        .get_sregs()
        .map_err(ioctl("read the special registers"))?;
    Ok((general.into(), special.into()))
}

/// Sets the state on a vCPU that has not run; see
/// [`Vcpu::set_state`](crate::Vcpu::set_state).
pub(super) fn set(
    fd: &VcpuFd,
    support: &StateSupport,
    xsave_size: usize,
    state: &VcpuState,
    policy: ClockPolicy,
) -> Result<()> {
    let VcpuState {
        cpuid,
        run_state,
        registers,
        special,
        xsave,
        xcrs,
        debug,
        local_apic,
        msrs,
        events,
        tsc,
        nested,
    } = state;
    // What the other registers may hold follows from the leaves.
    let cpuid: Vec<kvm_cpuid_entry2> = cpuid.iter().map(|&leaf| leaf.into()).collect();
    let cpuid = CpuId::from_entries(&cpuid).map_err(|_| Error::TooManyEntries("CPUID leaves"))?;
    fd.set_cpuid2(&cpuid)
        .map_err(ioctl("set the CPUID leaves"))?;
    set_tsc(fd, tsc, policy)?;
    // Enables the local APIC, whose registers come later.
    fd.set_sregs(&(*special).into())
        .map_err(ioctl("set the special registers"))?;
    fd.set_regs(&(*registers).into())
        .map_err(ioctl("set the general registers"))?;
    // XCR0 decides on what the area may hold.
    set_xcrs(fd, support, xcrs)?;
    set_xsave(fd, xsave_size, xsave)?;
    fd.set_debug_regs(&(*debug).into())
        .map_err(ioctl("set the debug registers"))?;
    // Before the registers of its timer.
    set_local_apic(fd, local_apic)?;
    set_changed_msrs(fd, msrs)?;
    if let Some(nested) = nested {
        set_nested(fd, nested)?;
    }
    fd.set_mp_state((*run_state).into())
        .map_err(ioctl("set a vCPU's run state"))?;
    // Last: the calls above may clear what is on its way.
    fd.set_vcpu_events(&(*events).into())
        .map_err(ioctl("set a vCPU's events"))
}

/// The kernel leaves the length of the table as it was asked for (seen with
/// 6.1), and what it did not fill as zeros.
fn without_empty_end(table: &[kvm_cpuid_entry2]) -> Vec<CpuidEntry> {
    let empty = kvm_cpuid_entry2::default();
    let length = table
        .iter()
        .rposition(|leaf| *leaf != empty)
        .map_or(0, |last| last + 1);
    table[..length].iter().map(|&leaf| leaf.into()).collect()
}

fn get_xsave(fd: &VcpuFd, size: usize) -> Result<Vec<u32>> {
    let mut area = new_xsave(size)?;
    if size == 0 {
        let area = fd.get_xsave().map_err(ioctl("read the extended state"))?;
        return Ok(area.region.to_vec());
    }
    // SAFETY: the area is as long as KVM_CAP_XSAVE2 says for this VM
    // (`new_xsave`), which is the most that the kernel writes.
    unsafe { fd.get_xsave2(&mut area) }.map_err(ioctl("read the extended state"))?;
    let mut words = area.as_fam_struct_ref().xsave.region.to_vec();
    words.extend_from_slice(area.as_slice());
    Ok(words)
}

fn set_xsave(fd: &VcpuFd, size: usize, words: &[u32]) -> Result<()> {
    let mut area = new_xsave(size)?;
    let expected = XSAVE_WORDS + area.as_slice().len();
    if words.len() != expected {
        return Err(Error::State {
            part: "the extended state",
            found: words.len(),
            expected,
        });
    }
    let (fixed, extra) = words.split_at(XSAVE_WORDS);
    area.as_mut_slice().copy_from_slice(extra);
    // SAFETY: only the fixed part is written; its length is that of the slice.
    unsafe { area.as_mut_fam_struct() }
        .xsave
        .region
        .copy_from_slice(fixed);
    // SAFETY: the area is at least as long as what the kernel reads: the fixed
    // part and what KVM_CAP_XSAVE2 adds to it for this VM.
    unsafe { fd.set_xsave2(&area) }.map_err(ioctl("set the extended state"))
}

/// An empty area of `size` bytes, as KVM_CAP_XSAVE2 says; of the fixed part
/// only if that is 0.
fn new_xsave(size: usize) -> Result<Xsave> {
    let extra = size
        .saturating_sub(size_of::<kvm_xsave>())
        .div_ceil(size_of::<<kvm_xsave2 as FamStruct>::Entry>());
    Xsave::new(extra).map_err(|_| Error::TooManyEntries("extended state"))
}

fn get_xcrs(fd: &VcpuFd, support: &StateSupport) -> Result<Vec<(u32, u64)>> {
    if !support.has_xcrs {
        return Ok(Vec::new());
    }
    let table = fd
        .get_xcrs()
        .map_err(ioctl("read the extended control registers"))?;
    Ok(table
        .xcrs
        .iter()
        .take(table.nr_xcrs as usize)
        .map(|register| (register.xcr, register.value))
        .collect())
}

fn set_xcrs(fd: &VcpuFd, support: &StateSupport, registers: &[(u32, u64)]) -> Result<()> {
    if registers.is_empty() || !support.has_xcrs {
        return Ok(());
    }
    let mut table = kvm_xcrs::default();
    if registers.len() > table.xcrs.len() {
        return Err(Error::TooManyEntries("extended control registers"));
    }
    for (place, &(xcr, value)) in table.xcrs.iter_mut().zip(registers) {
        *place = kvm_xcr {
            xcr,
            value,
            ..Default::default()
        };
        table.nr_xcrs += 1;
    }
    fd.set_xcrs(&table)
        .map_err(ioctl("set the extended control registers"))
}

/// Empty where the local APIC is not in the kernel.
pub(super) fn get_local_apic(fd: &VcpuFd) -> Result<Vec<u8>> {
    match fd.get_lapic() {
        Ok(state) => Ok(state
            .regs
            .iter()
            .map(|register| register.cast_unsigned())
            .collect()),
        Err(error) if error.errno() == libc::EINVAL => Ok(Vec::new()),
        Err(error) => Err(ioctl("read the local APIC")(error)),
    }
}

pub(super) fn set_local_apic(fd: &VcpuFd, registers: &[u8]) -> Result<()> {
    if registers.is_empty() {
        return Ok(());
    }
    let mut state = kvm_lapic_state::default();
    if registers.len() != state.regs.len() {
        return Err(Error::State {
            part: "the local APIC",
            found: registers.len(),
            expected: state.regs.len(),
        });
    }
    for (place, register) in state.regs.iter_mut().zip(registers) {
        *place = register.cast_signed();
    }
    fd.set_lapic(&state).map_err(ioctl("set the local APIC"))
}

/// The values of these registers, less those that this vCPU does not have: the
/// kernel's list is of the host.
fn get_msrs(fd: &VcpuFd, indexes: &[u32]) -> Result<Vec<(u32, u64)>> {
    let mut values = Vec::with_capacity(indexes.len());
    let mut rest = indexes;
    while !rest.is_empty() {
        let part = &rest[..rest.len().min(MAX_IO_MSRS)];
        let mut table = msr_table(part.iter().map(|&index| (index, 0)))?;
        let read = fd
            .get_msrs(&mut table)
            .map_err(ioctl("read model-specific registers"))?;
        values.extend(
            table
                .as_slice()
                .iter()
                .take(read)
                .map(|entry| (entry.index, entry.data)),
        );
        // The one at which the kernel stopped is not there.
        rest = &rest[(read + usize::from(read < part.len())).min(rest.len())..];
    }
    Ok(values)
}

/// Sets registers in the order given.
pub(super) fn set_msrs(fd: &VcpuFd, registers: &[(u32, u64)]) -> Result<()> {
    for part in registers.chunks(MAX_IO_MSRS) {
        let table = msr_table(part.iter().copied())?;
        let taken = fd
            .set_msrs(&table)
            .map_err(ioctl("set model-specific registers"))?;
        if let Some(&(refused, _)) = part.get(taken) {
            return Err(Error::Msr(refused));
        }
    }
    Ok(())
}

/// Sets those registers that have another value now. Some can be read but not
/// written where the guest lacks the feature, even with the value that they
/// have.
fn set_changed_msrs(fd: &VcpuFd, registers: &[(u32, u64)]) -> Result<()> {
    let indexes: Vec<u32> = registers.iter().map(|&(index, _)| index).collect();
    let now: HashMap<u32, u64> = get_msrs(fd, &indexes)?.into_iter().collect();
    let changed: Vec<(u32, u64)> = registers
        .iter()
        .filter(|&(index, value)| now.get(index) != Some(value))
        .copied()
        .collect();
    set_msrs(fd, &changed)
}

fn msr_table(registers: impl Iterator<Item = (u32, u64)>) -> Result<Msrs> {
    let entries: Vec<kvm_msr_entry> = registers
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| Error::TooManyEntries("model-specific registers"))
}

fn get_tsc(fd: &VcpuFd) -> Result<TscState> {
    let khz = fd
        .get_tsc_khz()
        .map_err(ioctl("read the frequency of the time stamp counter"))?;
    let value = get_msrs(fd, &[MSR_IA32_TSC])?;
    let value = value.first().ok_or(Error::Msr(MSR_IA32_TSC))?.1;
    Ok(TscState {
        khz,
        value,
        // Kernels before 5.16 do not have it.
        offset: get_attribute(fd, TSC_OFFSET).ok(),
    })
}

fn set_tsc(fd: &VcpuFd, state: &TscState, policy: ClockPolicy) -> Result<()> {
    let here = fd
        .get_tsc_khz()
        .map_err(ioctl("read the frequency of the time stamp counter"))?;
    // Hosts that cannot scale refuse any frequency but their own, and some
    // refuse to be asked.
    if here != state.khz {
        fd.set_tsc_khz(state.khz)
            .map_err(ioctl("set the frequency of the time stamp counter"))?;
    }
    match (policy, state.offset) {
        (ClockPolicy::Continue, Some(offset)) => {
            set_attribute(fd, TSC_OFFSET, offset).map_err(|source| Error::Ioctl {
                operation: "set the offset of the time stamp counter",
                source,
            })
        }
        _ => set_msrs(fd, &[(MSR_IA32_TSC, state.value)]),
    }
}

/// An attribute of a vCPU that is one 64-bit number: group and number in it.
type Attribute = (u32, u32);

const TSC_OFFSET: Attribute = (KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET);

fn get_attribute(fd: &VcpuFd, (group, number): Attribute) -> io::Result<u64> {
    let mut value = 0_u64;
    let attribute = kvm_device_attr {
        group,
        attr: number.into(),
        addr: std::ptr::from_mut(&mut value) as u64,
        ..Default::default()
    };
    // SAFETY:
    // - `fd` is an open vCPU descriptor, and `attribute` lives through the call.
    // - It names a u64 that lives through the call, and nothing longer is
    //   written for an `Attribute`.
    match unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_attribute(fd: &VcpuFd, (group, number): Attribute, value: u64) -> io::Result<()> {
    let attribute = kvm_device_attr {
        group,
        attr: number.into(),
        addr: std::ptr::from_ref(&value) as u64,
        ..Default::default()
    };
    // SAFETY: as in `get_attribute`; the kernel only reads the number.
    match unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The header also where nothing follows it: it tells of a VMXON without a
/// current VMCS, and of SVM's global interrupt flag.
fn get_nested(fd: &VcpuFd, support: &StateSupport) -> Result<Option<Vec<u8>>> {
    if !support.has_nested_state {
        return Ok(None);
    }
    let mut buffer = KvmNestedStateBuffer::empty();
    fd.nested_state(&mut buffer)
        .map_err(ioctl("read the state of a nested hypervisor"))?;
    let length = buffer.size as usize;
    // SAFETY:
    // - The buffer is plain data without padding that matters, wholly
    //   initialised by `empty` and by the kernel.
    // - The length is bounded by its size, the borrow ends with this function.
    let bytes = unsafe {
        std::slice::from_raw_parts(
            std::ptr::from_ref(&buffer).cast::<u8>(),
            length.min(size_of::<KvmNestedStateBuffer>()),
        )
    };
    Ok(Some(bytes.to_vec()))
}

fn set_nested(fd: &VcpuFd, bytes: &[u8]) -> Result<()> {
    let mut buffer = KvmNestedStateBuffer::empty();
    let capacity = size_of::<KvmNestedStateBuffer>();
    if bytes.len() > capacity {
        return Err(Error::State {
            part: "the state of a nested hypervisor",
            found: bytes.len(),
            expected: capacity,
        });
    }
    // SAFETY:
    // - The buffer is plain data, every pattern of bytes is valid.
    // - It is at least as long as `bytes`, and the two do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            std::ptr::from_mut(&mut buffer).cast::<u8>(),
            bytes.len(),
        );
    }
    // The size that was read from a file may promise more than came with it.
    buffer.size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    fd.set_nested_state(&buffer)
        .map_err(ioctl("set the state of a nested hypervisor"))
}
