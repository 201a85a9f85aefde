//! From checked parameters to a machine whose vCPUs wait for the start. The
//! one place that knows all parts.

use std::sync::Arc;

use api_client::config::ExitStatsConfig;
use hypervisor::x86::CpuidEntry;
use hypervisor::x86::state::ClockPolicy;
use hypervisor::{ExitStatsFeatures, Hypervisor, Vcpu, VcpuSetup, Vm};
use instrumentation::user_exit::{AddressSpace, RangeMap, UserExitRecorder};

use super::consoles::Consoles;
use super::device_tree::{DeviceError, DeviceTree};
use super::legacy::LegacyDevices;
use super::machine::{Machine, MachineState};
use crate::boot::registers::Entry;
use crate::boot::{self, BootError, acpi};
use crate::bus::{Bus, BusError};
use crate::config::{ConfigError, CpuParams, VmParams};
use crate::devices::Pin;
use crate::devices::serial::InputError;
use crate::event::EventSink;
use crate::interrupt::{InterruptError, MsiRouter};
use crate::memory::layout;
use crate::memory::{self, GuestRam, MemoryError};
use crate::pci::PciContext;
use crate::state::StateError;
use crate::stats::VmStats;
use crate::vcpu::cpuid::{self, CpuProfile, MAX_XAPIC_ID};
use crate::vcpu::{Buses, VcpuError, VcpuHandle, VcpuSnapshot, msr};

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
    /// A saved machine.
    #[error("The machine cannot go on from its saved state")]
    State(#[from] StateError),
}

/// What a machine starts from.
pub enum Origin<'a> {
    /// The configuration: a guest boots.
    Boot,
    /// A machine that was saved in this process: its guest goes on.
    Saved(&'a MachineState, Carried),
}

/// What goes from a machine to the one that is made of its state.
pub struct Carried {
    /// The guest's memory.
    pub(super) ram: GuestRam,
    /// By vCPU: what came to the VMM.
    pub(super) recorders: Vec<Arc<UserExitRecorder>>,
    /// Names of the device ranges in the recorders.
    pub(super) ranges: Arc<RangeMap>,
}

/// What a guest finds in its memory, and where it goes on from.
struct Guest {
    ram: GuestRam,
    /// Linux needs the processor, its interrupts and virtio; whatever else boots
    /// gets the rest of what it finds in a PC.
    is_pc: bool,
    /// None if the vCPUs have a state.
    entry: Option<Entry>,
}

/// Builds the machine, and what its statistics are read from. Its vCPUs wait for
/// the start, and if it goes on, its devices too. Nothing stays behind if it fails.
pub fn build(
    hypervisor: &Arc<dyn Hypervisor>,
    params: &VmParams,
    consoles: &Consoles,
    events: &EventSink,
    origin: Origin<'_>,
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

    let (saved, guest, recorders, ranges) = match origin {
        Origin::Boot => {
            let guest = load(params, &apic_ids, consoles.serial.is_some())?;
            let recorders = apic_ids.iter().map(|_| Arc::default()).collect();
            (None, guest, recorders, Arc::new(RangeMap::new()))
        }
        Origin::Saved(state, carried) => {
            let guest = Guest {
                ram: carried.ram,
                is_pc: state.is_pc,
                entry: None,
            };
            (Some(state), guest, carried.recorders, carried.ranges)
        }
    };
    let Guest { ram, is_pc, entry } = guest;
    memory::attach(vm.as_ref(), &ram)?;
    let reset_vector = boot::map_reset_vector(Arc::clone(&vm))?;

    let buses = Buses {
        pio: Arc::new(Bus::new(AddressSpace::Port, Arc::clone(&ranges))),
        mmio: Arc::new(Bus::new(AddressSpace::Mmio, Arc::clone(&ranges))),
    };
    let debug_port = params.debug_port;
    let legacy = LegacyDevices::new(&vm, &router, &buses, is_pc, debug_port, consoles, events)?;
    let mut devices = DeviceTree::new(
        PciContext {
            vm: Arc::clone(&vm),
            router,
            mmio: Arc::clone(&buses.mmio),
            memory: Arc::new(ram.clone()),
            events: events.clone(),
        },
        &buses.pio,
        legacy.ioapic.line(Pin::Hotplug),
    )?;
    if is_pc {
        devices.add_config_ports(&buses.pio, Arc::clone(&legacy.reset_control))?;
    }
    if let Some(state) = saved {
        devices.keep_slots(&state.bus);
    }
    devices.add_all(&params.devices, consoles.console.as_ref())?;

    let start = match (saved, entry) {
        (Some(state), _) => VcpuStart::Saved(&state.vcpus),
        (None, Some(entry)) => VcpuStart::Boot {
            supported: &supported,
            profile: CpuProfile {
                topology: params.cpus.topology,
                max_phys_bits: params.cpus.max_phys_bits,
                nested: params.cpus.nested,
                tsc_deadline: hypervisor.has_tsc_deadline_timer(),
                is_pc,
                wide_apic_ids,
            },
            entry,
        },
        (None, None) => return Err(StateError::Missing("the vCPUs".to_owned()).into()),
    };
    let (vcpus, stats) =
        create_vcpus(vm.as_ref(), &params.cpus, &start, &buses, recorders, events)?;
    // Interrupts go to vCPUs, so their state comes first.
    let typed = match saved {
        Some(state) => {
            vm.set_state(&state.vm, ClockPolicy::Continue)?;
            devices.pause();
            devices.restore(&state.bus)?;
            legacy.restore(&state.legacy)?
        }
        None => Vec::new(),
    };
    let input = legacy.start_input(typed, events)?;
    let stats = VmStats {
        vcpus: stats.vcpus,
        ranges: Arc::clone(&ranges),
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
        legacy,
        is_pc,
        buses,
        ranges,
        vm,
        _reset_vector: reset_vector,
        ram,
    };
    Ok((machine, stats))
}

/// Allocates the guest's memory and puts into it what it boots from.
fn load(params: &VmParams, apic_ids: &[u32], serial: bool) -> Result<Guest, BuildError> {
    let ram = memory::allocate(&params.memory)?;
    let kernel = boot::load_kernel(&ram, &params.payload)?;
    let is_pc = !kernel.is_linux();
    let rsdp = acpi::write_tables(
        &ram,
        &acpi::AcpiParams {
            apic_ids: apic_ids.to_vec(),
            serial,
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
    Ok(Guest {
        ram,
        is_pc,
        entry: Some(entry),
    })
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

/// The parts of the statistics that come from the vCPUs.
struct VcpuStats {
    vcpus: Vec<(hypervisor::StatsFd, Arc<UserExitRecorder>)>,
    tsc_khz: u32,
}

/// What vCPUs start from.
enum VcpuStart<'a> {
    /// Their first state.
    Boot {
        supported: &'a [CpuidEntry],
        profile: CpuProfile,
        entry: Entry,
    },
    /// What they were.
    Saved(&'a [VcpuSnapshot]),
}

impl VcpuStart<'_> {
    fn prepare(&self, id: u32, vcpu: &mut dyn Vcpu) -> Result<(), BuildError> {
        match self {
            VcpuStart::Boot {
                supported,
                profile,
                entry,
            } => vcpu.set_up(&VcpuSetup {
                cpuid: cpuid::for_vcpu(supported, profile, id),
                msrs: msr::boot_msrs(),
                registers: (id == 0).then(|| entry.registers()),
                // As a processor starts, so far as eight bits can number them; Linux
                // would switch over at some cost.
                x2apic: !profile.is_pc || profile.wide_apic_ids,
                extended_state: true,
            })?,
            VcpuStart::Saved(vcpus) => {
                let saved = vcpus
                    .get(id as usize)
                    .ok_or_else(|| StateError::Missing(format!("vCPU {id}")))?;
                vcpu.set_state(&saved.state, ClockPolicy::Continue)?;
                if let Some(counters) = &saved.exit_counters {
                    vcpu.set_exit_counters(counters)?;
                }
            }
        }
        Ok(())
    }
}

fn create_vcpus(
    vm: &dyn Vm,
    cpus: &CpuParams,
    start: &VcpuStart<'_>,
    buses: &Buses,
    recorders: Vec<Arc<UserExitRecorder>>,
    events: &EventSink,
) -> Result<(Vec<VcpuHandle>, VcpuStats), BuildError> {
    let mut handles = Vec::new();
    let mut stats = VcpuStats {
        vcpus: Vec::new(),
        tsc_khz: 0,
    };
    for (id, recorder) in (0..cpus.count).zip(recorders) {
        let mut vcpu = vm.create_vcpu(cpus.topology.apic_id(id))?;
        start.prepare(id, vcpu.as_mut())?;
        if id == 0 {
            stats.tsc_khz = vcpu.tsc_khz()?;
        }
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
