//! A virtual CPU of KVM.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_xcrs};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl as raw_ioctl;
use vmm_sys_util::ioctl_io_nr;

use super::kick::VcpuKick;
use super::vcpu_state::{self, StateSupport};
use super::{exit_counters, ioctl};
use crate::internal_error::InternalError;
use crate::stats_fd::{StatsError, StatsFd};
use crate::traits::{Error, Result, Vcpu, VcpuSetup, VmExit, VmOps};
use crate::x86::state::{ClockPolicy, ExitCountersState, VcpuState};
use crate::x86::{CpuidEntry, Registers, SpecialRegisters};

pub(super) const KVMIO: u32 = 0xae;
ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// CPUID leaf of the extended state.
const LEAF_EXTENDED_STATE: u32 = 0xd;

const MSR_IA32_APICBASE: u64 = 0xfee0_0000;
const APICBASE_BSP: u64 = 1 << 8;
const APICBASE_X2APIC: u64 = 1 << 10;
const APICBASE_ENABLE: u64 = 1 << 11;

/// A vCPU's descriptor and its shared page.
pub(super) struct KvmVcpu {
    fd: VcpuFd,
    /// The kernel keeps the VM alive for its vCPUs; so does this side.
    vm: Arc<VmFd>,
    support: Arc<StateSupport>,
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd, vm: Arc<VmFd>, support: Arc<StateSupport>) -> Self {
        Self { fd, vm, support }
    }

    /// Bytes of the XSAVE area of this VM's vCPUs; 0 where the kernel has the
    /// fixed part only (before 5.17).
    fn xsave_size(&self) -> usize {
        usize::try_from(self.vm.check_extension_int(Cap::Xsave2)).unwrap_or(0)
    }

    /// Without effect on hosts that refuse: the guest enables the state itself.
    fn enable_extended_state(&self, cpuid: &[CpuidEntry]) {
        let Some(leaf) = cpuid
            .iter()
            .find(|leaf| leaf.function == LEAF_EXTENDED_STATE && leaf.index == 0)
        else {
            return;
        };
        let mut registers = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        registers.xcrs[0].value = u64::from(leaf.eax) | u64::from(leaf.edx) << 32;
        let _ = self.fd.set_xcrs(&registers);
    }
}

impl KvmVcpu {
    /// Makes this vCPU a destination of interrupts in xAPIC mode before its guest
    /// has enabled its local APIC.
    ///
    /// KVM looks destinations up in a map (`kvm_recalculate_apic_map`), which it
    /// makes anew when a local APIC changes in a way that it needs to know. It
    /// makes one while a vCPU is created, too early for the vCPU to be in it; what
    /// is sent to the vCPU after that is lost, an INIT for one. The change to
    /// x2APIC mode makes the map anew, and so does setting the local APIC's state.
    fn make_reachable(&self) -> Result<()> {
        vcpu_state::set_local_apic(&self.fd, &vcpu_state::get_local_apic(&self.fd)?)
    }
}

impl Vcpu for KvmVcpu {
    fn set_up(&mut self, setup: &VcpuSetup) -> Result<()> {
        let cpuid: Vec<kvm_cpuid_entry2> = setup.cpuid.iter().map(|&leaf| leaf.into()).collect();
        let cpuid =
            CpuId::from_entries(&cpuid).map_err(|_| Error::TooManyEntries("CPUID leaves"))?;
        self.fd
            .set_cpuid2(&cpuid)
            .map_err(ioctl("set the CPUID leaves"))?;
        let mut special = self
            .fd
            .get_sregs()
            .map_err(ioctl("read the special registers"))?;
        let was_bsp = special.apic_base & APICBASE_BSP;
        if let Some((_, wanted)) = &setup.registers {
            special = (*wanted).into();
        }
        special.apic_base = MSR_IA32_APICBASE | APICBASE_ENABLE | was_bsp;
        if setup.x2apic {
            special.apic_base |= APICBASE_X2APIC;
        }
        self.fd
            .set_sregs(&special)
            .map_err(ioctl("set the special registers"))?;
        if !setup.x2apic {
            self.make_reachable()?;
        }
        if let Some((general, _)) = &setup.registers {
            self.fd
                .set_regs(&(*general).into())
                .map_err(ioctl("set the general registers"))?;
        }
        if setup.extended_state {
            self.enable_extended_state(&setup.cpuid);
        }
        vcpu_state::set_msrs(&self.fd, &setup.msrs)
    }

    fn run(&mut self, ops: &dyn VmOps) -> Result<VmExit> {
        // A string instruction arrives as several elements in one exit; the
        // element's width is in the shared page only.
        let exit = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                let (data, length) = (data.as_mut_ptr(), data.len());
                let width = self.io_width(length);
                // SAFETY:
                // - kvm-ioctls made the slice from the mapping that `self.fd`
                //   owns; it stays mapped for as long as `self` lives.
                // - `io_width` has let go of its view of the page, and nothing
                //   else refers to these bytes until this block ends.
                let data = unsafe { std::slice::from_raw_parts_mut(data, length) };
                for element in data.chunks_exact_mut(width) {
                    ops.pio_read(port, element);
                }
                VmExit::Handled
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                let (data, length) = (data.as_ptr(), data.len());
                let width = self.io_width(length);
                // SAFETY: as for IN above; the bytes are only read.
                let data = unsafe { std::slice::from_raw_parts(data, length) };
                for element in data.chunks_exact(width) {
                    ops.pio_write(port, element);
                }
                VmExit::Handled
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                ops.mmio_read(address, data);
                VmExit::Handled
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                ops.mmio_write(address, data);
                VmExit::Handled
            }
            Ok(VcpuExit::Hlt) => VmExit::Halt,
            Ok(VcpuExit::Shutdown) => VmExit::TripleFault,
            Ok(VcpuExit::SystemEvent(kind, _)) => VmExit::SystemEvent(kind),
            Ok(VcpuExit::FailEntry(reason, cpu)) => VmExit::EntryFailure { reason, cpu },
            Ok(VcpuExit::InternalError) => VmExit::InternalError(self.internal_error()),
            Ok(VcpuExit::Intr) => VmExit::Interrupted,
            Ok(_) => VmExit::Unexpected(self.fd.get_kvm_run().exit_reason),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => VmExit::Interrupted,
                _ => return Err(ioctl("run a vCPU")(error)),
            },
        };
        Ok(exit)
    }

    fn kick_handle(&self) -> Result<Arc<VcpuKick>> {
        VcpuKick::new(self.fd.as_raw_fd())
            .map(Arc::new)
            .map_err(|source| Error::Ioctl {
                operation: "map a vCPU's shared page",
                source,
            })
    }

    fn stats(&self) -> Result<StatsFd> {
        // SAFETY:
        // - `fd` is an open vCPU descriptor and the request takes no argument.
        // - The result is checked before it is used.
        let stats = unsafe { raw_ioctl(&self.fd, KVM_GET_STATS_FD()) };
        if stats < 0 {
            let source = std::io::Error::last_os_error();
            return Err(StatsError::Io("open", source).into());
        }
        // SAFETY: the kernel just made this descriptor for us; nobody else
        // knows or closes it.
        let file = unsafe { File::from_raw_fd(stats) };
        Ok(StatsFd::from_file(file)?)
    }

    fn tsc_khz(&self) -> Result<u32> {
        self.fd
            .get_tsc_khz()
            .map_err(ioctl("read the frequency of the time stamp counter"))
    }

    fn kvmclock_ctrl(&self) {
        // Fails for guests that have no kvmclock, which then need no note.
        let _ = self.fd.kvmclock_ctrl();
    }

    fn registers(&self) -> Result<(Registers, SpecialRegisters)> {
        vcpu_state::registers(&self.fd)
    }

    fn state(&self) -> Result<VcpuState> {
        vcpu_state::get(&self.fd, &self.support, self.xsave_size())
    }

    fn set_state(&mut self, state: &VcpuState, policy: ClockPolicy) -> Result<()> {
        vcpu_state::set(&self.fd, &self.support, self.xsave_size(), state, policy)
    }

    fn exit_counters(&self) -> Result<Option<ExitCountersState>> {
        exit_counters::get(&self.fd)
    }

    fn set_exit_counters(&mut self, state: &ExitCountersState) -> Result<()> {
        exit_counters::set(&self.fd, state)
    }
}

impl KvmVcpu {
    /// What KVM says of an internal error just reported.
    fn internal_error(&mut self) -> InternalError {
        let run = self.fd.get_kvm_run();
        // SAFETY: called after `KVM_EXIT_INTERNAL_ERROR` only, when `internal`
        // is the active member; it is plain data in any case.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let ip = self.fd.get_regs().map(|registers| registers.rip).ok();
        InternalError::new(internal.suberror, ip, internal.ndata, &internal.data)
    }

    /// Width in bytes of one element of the port access just reported, never
    /// zero and never more than `length`.
    fn io_width(&mut self, length: usize) -> usize {
        let run = self.fd.get_kvm_run();
        // SAFETY: called after an exit for port I/O only, when `io` is the
        // active member; it is plain data in any case.
        let width = unsafe { run.__bindgen_anon_1.io.size };
        usize::from(width).clamp(1, length.max(1))
    }
}
