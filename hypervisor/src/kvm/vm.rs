//! A virtual machine of KVM.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CLOCK_REALTIME, KVM_IRQ_ROUTING_MSI,
    KVM_MEM_READONLY, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS,
    KvmIrqRouting, kvm_clock_data, kvm_enable_cap, kvm_irq_routing_entry, kvm_irq_routing_msi,
    kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::vcpu::KvmVcpu;
use super::vcpu_state::StateSupport;
use super::{ExitStatsSupport, KVM_CAP_EXIT_STATS, ioctl};
use crate::traits::{Error, ExitStatsFeatures, IrqRoute, Result, Vcpu, Vm};
use crate::x86::state::{ClockPolicy, ClockState, VmState};

// Four pages below the firmware area at the end of the first 4 GiB, used by
// VMX for real-mode guests. The guest's memory map has to leave them out.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TSS: usize = 0xfffb_d000;

const EXIT_STATS_GUEST_LEAVES: u64 = 1 << 0;
const EXIT_STATS_LATENCY: u64 = 1 << 1;

/// A VM's file descriptor. vCPUs keep it open, as the kernel does.
pub(super) struct KvmVm {
    fd: Arc<VmFd>,
    support: Arc<StateSupport>,
}

impl KvmVm {
    pub(super) fn new(fd: VmFd, support: Arc<StateSupport>) -> Result<Self> {
        fd.set_identity_map_address(IDENTITY_MAP)
            .map_err(ioctl("place the identity map"))?;
        fd.set_tss_address(TSS)
            .map_err(ioctl("place the task state segment"))?;
        Ok(Self {
            fd: Arc::new(fd),
            support,
        })
    }
}

impl Vm for KvmVm {
    fn create_local_apics(&self) -> Result<()> {
        // No number is kept for an I/O APIC: its pins are messages like all
        // others, and edge-triggered ones need no word of their end.
        let request = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..Default::default()
        };
        self.fd
            .enable_cap(&request)
            .map_err(ioctl("create the local interrupt controllers"))
    }

    fn use_wide_apic_ids(&self) -> Result<()> {
        let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        let mut request = kvm_enable_cap {
            cap: KVM_CAP_X2APIC_API,
            ..Default::default()
        };
        request.args[0] = flags.into();
        self.fd
            .enable_cap(&request)
            .map_err(ioctl("use local APIC ids of 32 bits"))
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>> {
        let vcpu = self
            .fd
            .create_vcpu(u64::from(id))
            .map_err(ioctl("create a vCPU"))?;
        Ok(Box::new(KvmVcpu::new(
            vcpu,
            Arc::clone(&self.fd),
            Arc::clone(&self.support),
        )))
    }

    unsafe fn map_memory(&self, slot: u32, guest: u64, size: u64, host: *mut u8) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: guest,
            memory_size: size,
            userspace_addr: host as u64,
        };
        // SAFETY: the caller vouches that the range stays mapped and that no
        // reference into it exists; the kernel checks slot and alignment.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(ioctl("map guest memory"))
    }

    unsafe fn map_readonly_memory(
        &self,
        slot: u32,
        guest: u64,
        size: u64,
        host: *const u8,
    ) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: guest,
            memory_size: size,
            userspace_addr: host as u64,
        };
        // SAFETY: the caller vouches that the range stays mapped; the flag
        // keeps the guest from writing to it; the kernel checks the rest.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(ioctl("map memory that the guest may read"))
    }

    fn unmap_memory(&self, slot: u32) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            ..Default::default()
        };
        // SAFETY: a size of zero removes the slot; no memory is named.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(ioctl("unmap guest memory"))
    }

    fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.fd
            .register_irqfd(event, gsi)
            .map_err(ioctl("attach an interrupt to an event"))
    }

    fn unregister_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.fd
            .unregister_irqfd(event, gsi)
            .map_err(ioctl("detach an interrupt from an event"))
    }

    fn register_ioeventfd(&self, event: &EventFd, address: u64) -> Result<()> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(ioctl("attach an event to an address"))
    }

    fn unregister_ioeventfd(&self, event: &EventFd, address: u64) -> Result<()> {
        self.fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(ioctl("detach an event from an address"))
    }

    fn set_irq_routes(&self, routes: &[IrqRoute]) -> Result<()> {
        let entries: Vec<kvm_irq_routing_entry> = routes.iter().map(routing_entry).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| Error::TooManyEntries("interrupt routing table"))?;
        self.fd
            .set_gsi_routing(&table)
            .map_err(ioctl("set the interrupt routing"))
    }

    fn signal_msi(&self, address: u64, data: u32) -> Result<()> {
        let message = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        self.fd
            .signal_msi(message)
            .map(drop)
            .map_err(ioctl("send a message to a local interrupt controller"))
    }

    fn state(&self) -> Result<VmState> {
        let clock = self
            .fd
            .get_clock()
            .map_err(ioctl("read the paravirtual clock"))?;
        Ok(VmState {
            clock: ClockState {
                nanoseconds: clock.clock,
                wall_clock: (clock.flags & KVM_CLOCK_REALTIME != 0).then_some(clock.realtime),
            },
        })
    }

    fn set_state(&self, state: &VmState, policy: ClockPolicy) -> Result<()> {
        let VmState {
            clock:
                ClockState {
                    nanoseconds,
                    wall_clock,
                },
        } = *state;
        let mut clock = kvm_clock_data {
            clock: nanoseconds,
            ..Default::default()
        };
        if let (ClockPolicy::Continue, Some(then)) = (policy, wall_clock) {
            // The kernel adds what has passed on the wall clock since.
            clock.flags = KVM_CLOCK_REALTIME;
            clock.realtime = then;
        }
        self.fd
            .set_clock(&clock)
            .map_err(ioctl("set the paravirtual clock"))
    }

    fn exit_stats_support(&self) -> ExitStatsSupport {
        ExitStatsSupport::from_raw(self.fd.check_extension_raw(KVM_CAP_EXIT_STATS.into()))
    }

    fn latency_file(&self) -> std::io::Result<std::fs::File> {
        std::fs::File::open(format!(
            "/sys/kernel/debug/kvm/{}-{}/exit_stats_latency",
            std::process::id(),
            self.fd.as_raw_fd()
        ))
    }

    fn set_exit_stats_features(&self, features: ExitStatsFeatures) -> Result<()> {
        let mut wanted = 0;
        if features.guest_leaves {
            wanted |= EXIT_STATS_GUEST_LEAVES;
        }
        if features.latency {
            wanted |= EXIT_STATS_LATENCY;
        }
        let mut request = kvm_enable_cap {
            cap: KVM_CAP_EXIT_STATS,
            ..Default::default()
        };
        request.args[0] = wanted;
        self.fd
            .enable_cap(&request)
            .map_err(ioctl("set the features of exit accounting"))
    }
}

fn routing_entry(route: &IrqRoute) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: route.gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: route.address as u32,
        address_hi: (route.address >> 32) as u32,
        data: route.data,
        ..Default::default()
    };
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_route_splits_its_address() {
        let entry = routing_entry(&IrqRoute {
            gsi: 24,
            address: 0x1_fee0_1000,
            data: 0x4021,
        });
        assert_eq!((entry.gsi, entry.type_), (24, KVM_IRQ_ROUTING_MSI));
        // SAFETY: `type_` says that the message is the active field.
        let msi = unsafe { entry.u.msi };
        assert_eq!(
            (msi.address_lo, msi.address_hi, msi.data),
            (0xfee0_1000, 1, 0x4021)
        );
    }
}
