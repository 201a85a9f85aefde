//! From checked parameters to a machine whose vCPUs wait for the start. The
//! one place that knows all parts.

use std::sync::Arc;

use api_client::config::ExitStatsConfig;
use hypervisor::x86::CpuidEntry;
use hypervisor::{ExitStatsFeatures, Hypervisor, VcpuSetup, Vm};
use instrumentation::user_exit::{AddressSpace, RangeMap, UserExitRecorder};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::consoles::Consoles;
use super::device_tree::{DeviceError, DeviceTree};
use super::machine::Machine;
use crate::boot::registers::Entry;
use crate::boot::{self, BootError, acpi};
use crate::bus::{Bus, BusError};
use crate::config::{ConfigError, CpuParams, VmParams};
use crate::console_end::ConsoleEnd;
use crate::devices::serial::{InputError, Serial, SerialInput};
use crate::devices::{
    Cmos, DebugConsole, I8042, IoApic, Pin, PmTimer, PowerRegisters, ResetControl,
};
use crate::event::EventSink;
use crate::interrupt::{InterruptError, MsiRouter};
use crate::memory::layout::{
    self, CMOS_PORTS, I8042_PORTS, IOAPIC_LENGTH, IOAPIC_START, PM_TIMER_PORTS, POWER_PORTS,
    RESET_CONTROL_PORT, SERIAL_PORTS, SYSTEM_CONTROL_PORT,
};
use crate::memory::{self, IOAPIC_SLOT, MemoryError, ReadOnlyWindow};
use crate::stats::VmStats;
use crate::vcpu::cpuid::{self, CpuProfile, MAX_XAPIC_ID};
use crate::vcpu::{Buses, VcpuError, VcpuHandle, msr};
use crate::virtio::transport::pci::PciPlatform;

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration.
    #[error("The configuration is not valid")]
    Config(#[from] ConfigError),
    /// The hypervisor.
    #[error("The hypervisor cannot run the machine")]
    Hypervisor(#[from] hypervisor::Error),
    /// Histograms that nobody keeps.
    #[error("This host's KVM keeps no latency histograms of exits")]
    NoLatency,
    /// Guest memory.
    #[error("The guest's memory cannot be set up")]
    Memory(#[from] MemoryError),
    /// Kernel and tables.
    #[error("The guest cannot be loaded")]
    Boot(#[from] BootError),
    /// Interrupts.
    #[error("The guest's interrupts cannot be set up")]
    Interrupt(#[from] InterruptError),
    /// Device addresses.
    #[error("The guest's devices cannot be placed")]
    Bus(#[from] BusError),
    /// Devices on the PCI bus.
    #[error("The guest's PCI devices cannot be set up")]
    Device(#[from] DeviceError),
    /// The terminal, or what else is typed at.
    #[error("The serial port's input cannot be set up")]
    SerialInput(#[from] InputError),
    /// vCPUs.
    #[error("The guest's vCPUs cannot be started")]
    Vcpu(#[from] VcpuError),
}

/// Builds the machine, and what its statistics are read from. Nothing stays
/// behind if it fails.
pub fn build(
    hypervisor: &Arc<dyn Hypervisor>,
    params: &VmParams,
    consoles: &Consoles,
    events: &EventSink,
) -> Result<(Machine, VmStats), BuildError> {
    let limit = hypervisor.max_vcpus();
    if params.cpus.max as usize > limit {
        return Err(ConfigError::HostVcpuLimit {
            asked: params.cpus.max,
            limit,
        }
        .into());
    }
    let supported = hypervisor.supported_cpuid()?;
    check_address_width(params, cpuid::physical_address_bits(&supported))?;
    let vm = hypervisor.create_vm()?;
    if let Some(wanted) = params.exit_stats {
        limit_exit_stats(vm.as_ref(), wanted)?;
    }
    vm.create_local_apics()?;
    let apic_ids: Vec<u32> = (0..params.cpus.count)
        .map(|id| params.cpus.topology.apic_id(id))
        .collect();
    let wide_apic_ids = apic_ids.iter().any(|&id| id > MAX_XAPIC_ID);
    if wide_apic_ids {
        vm.use_wide_apic_ids()?;
    }
    let router = MsiRouter::new(Arc::clone(&vm));

    let ram = memory::allocate(&params.memory)?;
    let kernel = boot::load_kernel(&ram, &params.payload)?;
    // Linux needs the processor, its interrupts and virtio; whatever else boots
    // gets the rest of what it finds in a PC.
    let is_pc = !kernel.is_linux();
    let rsdp = acpi::write_tables(
        &ram,
        &acpi::Platform {
            apic_ids: apic_ids.clone(),
            serial: consoles.serial.is_some(),
            pm_timer: is_pc,
        },
    )?;
    boot::write_smbios(
        &ram,
        &params.identity,
        params.cpus.count,
        params.memory.iter().map(|zone| zone.size).sum(),
    )?;
    let entry = boot::load_rest(&ram, &params.payload, &kernel, rsdp)?;
    memory::attach(vm.as_ref(), &ram)?;
    let reset_vector = boot::map_reset_vector(Arc::clone(&vm))?;

    let ranges = Arc::new(RangeMap::new());
    let buses = Buses {
        pio: Arc::new(Bus::new(AddressSpace::Port, Arc::clone(&ranges))),
        mmio: Arc::new(Bus::new(AddressSpace::Mmio, Arc::clone(&ranges))),
    };
    let ioapic = add_ioapic(&vm, &router, &buses)?;
    add_ports(&buses, params, is_pc, consoles, events)?;
    let input = match &consoles.serial {
        Some(end) => add_serial(&ioapic, &buses, end, events)?,
        None => None,
    };
    let platform = PciPlatform {
        vm: Arc::clone(&vm),
        router,
        mmio: Arc::clone(&buses.mmio),
        memory: Arc::new(ram.clone()),
        events: events.clone(),
    };
    let mut devices = DeviceTree::new(
        platform,
        &buses.pio,
        ioapic.line(Pin::Hotplug),
        events.clone(),
    )?;
    let reset_control = Arc::new(ResetControl::new(events.clone()));
    if is_pc {
        devices.add_config_ports(&buses.pio, reset_control)?;
    } else {
        let (base, length) = RESET_CONTROL_PORT;
        let (base, length) = (u64::from(base), u64::from(length));
        buses
            .pio
            .insert("reset_control", base, length, reset_control)?;
    }
    devices.add_all(&params.devices, consoles.console.as_ref())?;

    let profile = CpuProfile {
        topology: params.cpus.topology,
        max_phys_bits: params.cpus.max_phys_bits,
        nested: params.cpus.nested,
        tsc_deadline: hypervisor.has_tsc_deadline_timer(),
        is_pc,
        wide_apic_ids,
    };
    let (vcpus, stats) = create_vcpus(
        vm.as_ref(),
        &supported,
        &params.cpus,
        &profile,
        entry,
        &buses,
        events,
    )?;
    let stats = VmStats {
        vcpus: stats.vcpus,
        ranges,
        isa: hypervisor.isa(),
        tsc_khz: stats.tsc_khz,
        latency: match params.exit_stats {
            Some(wanted) if wanted.latency => vm
                .latency_file()
                .inspect_err(|error| {
                    log::warn!("the latency histograms are shown in debugfs only: {error}");
                })
                .ok(),
            _ => None,
        },
        kvm: {
            // Not the VM: its end must not wait for the readers of its statistics.
            let hypervisor = Arc::clone(hypervisor);
            Box::new(move || hypervisor.exit_stats_support())
        },
    };
    let machine = Machine {
        vcpus,
        apic_ids,
        input,
        devices,
        buses,
        vm,
        _reset_vector: reset_vector,
        ram,
    };
    Ok((machine, stats))
}

/// The guest can name every byte of its memory.
fn check_address_width(params: &VmParams, host: u8) -> Result<(), ConfigError> {
    let bits = params.cpus.max_phys_bits.min(host);
    let size = params.memory.iter().map(|zone| zone.size).sum();
    let last = layout::ram_part(0, size).last().copied();
    let end = last.map_or(0, |(start, length)| start.saturating_add(length));
    if end.checked_shr(bits.into()).unwrap_or(0) != 0 && end != 1 << bits {
        return Err(ConfigError::MemoryBeyondAddresses { size, bits });
    }
    Ok(())
}

/// Gives the machine these features of the exit accounting and no others.
fn limit_exit_stats(vm: &dyn Vm, wanted: ExitStatsConfig) -> Result<(), BuildError> {
    let support = vm.exit_stats_support();
    // Whoever counts also keeps histograms when told to.
    if support.version() == 0 {
        // Leaves that nobody answers need not be switched off.
        return match wanted.latency {
            true => Err(BuildError::NoLatency),
            false => Ok(()),
        };
    }
    vm.set_exit_stats_features(ExitStatsFeatures {
        guest_leaves: wanted.guest_leaves && support.guest_leaves(),
        latency: wanted.latency,
    })?;
    Ok(())
}

/// The I/O APIC, whose registers the guest reads without an exit.
fn add_ioapic(
    vm: &Arc<dyn Vm>,
    router: &Arc<MsiRouter>,
    buses: &Buses,
) -> Result<Arc<IoApic>, BuildError> {
    let start = u64::from(IOAPIC_START);
    let window = ReadOnlyWindow::map(Arc::clone(vm), IOAPIC_SLOT, start, &[0; 4096], 1)?;
    let ioapic = IoApic::new(router, Some(window))?;
    buses
        .mmio
        .insert("ioapic", start, IOAPIC_LENGTH, ioapic.clone())?;
    Ok(ioapic)
}

/// What is behind ports and raises no interrupts.
fn add_ports(
    buses: &Buses,
    params: &VmParams,
    is_pc: bool,
    consoles: &Consoles,
    events: &EventSink,
) -> Result<(), BusError> {
    let place = |name: &str, (base, length): (u16, u16), device| {
        buses
            .pio
            .insert(name, u64::from(base), u64::from(length), device)
    };
    place("i8042", I8042_PORTS, Arc::new(I8042::new(events.clone())))?;
    place(
        "power",
        POWER_PORTS,
        Arc::new(PowerRegisters::new(events.clone())),
    )?;
    place(
        "system_control",
        SYSTEM_CONTROL_PORT,
        Arc::new(ResetControl::system_control_a(events.clone())),
    )?;
    if is_pc {
        place("cmos", CMOS_PORTS, Arc::new(Cmos::new()))?;
        place("pm_timer", PM_TIMER_PORTS, Arc::new(PmTimer::new()))?;
    }
    if let (Some(port), Some(end)) = (params.debug_port, &consoles.debug) {
        let device = Arc::new(DebugConsole::new(end.clone()));
        place("debug_console", (port, 1), device)?;
    }
    Ok(())
}

/// The serial port; whoever carries its input comes back, if there is any.
fn add_serial(
    ioapic: &IoApic,
    buses: &Buses,
    end: &ConsoleEnd,
    events: &EventSink,
) -> Result<Option<SerialInput>, BuildError> {
    let drained = end
        .has_input()
        .then(|| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
        .transpose()
        .map_err(InputError::Prepare)?;
    let notice = drained
        .as_ref()
        .map(EventFd::try_clone)
        .transpose()
        .map_err(InputError::Prepare)?;
    let serial = Serial::new(ioapic.line(Pin::Serial), end.clone(), notice);
    let (base, length) = SERIAL_PORTS;
    buses
        .pio
        .insert("serial", base.into(), length.into(), serial.clone())?;
    let Some(drained) = drained else {
        return Ok(None);
    };
    let input = SerialInput::start(serial, end.clone(), drained, events.clone())?;
    Ok(Some(input))
}

/// The parts of the statistics that come from the vCPUs.
struct VcpuStats {
    vcpus: Vec<(hypervisor::StatsFd, Arc<UserExitRecorder>)>,
    tsc_khz: u32,
}

fn create_vcpus(
    vm: &dyn Vm,
    supported: &[CpuidEntry],
    cpus: &CpuParams,
    profile: &CpuProfile,
    entry: Entry,
    buses: &Buses,
    events: &EventSink,
) -> Result<(Vec<VcpuHandle>, VcpuStats), BuildError> {
    let mut handles = Vec::new();
    let mut stats = VcpuStats {
        vcpus: Vec::new(),
        tsc_khz: 0,
    };
    for id in 0..cpus.count {
        let mut vcpu = vm.create_vcpu(profile.topology.apic_id(id))?;
        vcpu.set_up(&VcpuSetup {
            cpuid: cpuid::for_vcpu(supported, profile, id),
            msrs: msr::boot_msrs(),
            registers: (id == 0).then(|| entry.registers()),
            // As a processor starts, so far as eight bits can number them; Linux
            // would switch over at some cost.
            x2apic: !profile.is_pc || profile.wide_apic_ids,
            extended_state: true,
        })?;
        if id == 0 {
            stats.tsc_khz = vcpu.tsc_khz()?;
        }
        let recorder = Arc::new(UserExitRecorder::new());
        stats.vcpus.push((vcpu.stats()?, Arc::clone(&recorder)));
        let affinity = cpus.affinity.get(id as usize);
        handles.push(VcpuHandle::start(
            id,
            vcpu,
            buses,
            recorder,
            events,
            affinity.cloned().unwrap_or_default(),
        )?);
    }
    Ok((handles, stats))
}
