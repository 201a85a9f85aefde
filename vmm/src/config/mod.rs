//! From what a client wrote to what the VMM builds: sizes checked, conflicts
//! and everything that is not available refused by name, nothing ignored
//! silently.

mod balloon;
mod console;
mod devices;
mod disk;
mod identity;
mod memory;
mod names;
mod net;
mod unsupported;
mod vsock;

use api_client::config::{CpusConfig, ExitStatsConfig, PayloadConfig, VmConfig};

pub use balloon::check_size as check_balloon_size;
pub use console::ConsoleTargets;
pub use devices::{DeviceParams, PciDevice, PciParams};
pub use memory::{MemoryConfigError, total as memory_size};
pub use names::{forget_device, name_devices};
pub use net::NetConfigError;

use crate::boot::{Identity, Payload};
use crate::memory::Zone;
use crate::vcpu::cpuid::Topology;

/// The most vCPUs that KVM can be built for on x86 (CONFIG_KVM_MAX_NR_VCPUS). The
/// host's own limit is checked when the VM is built.
pub const MAX_VCPUS: u32 = 4096;
/// Bytes that an identifier has at most.
const MAX_ID: usize = 255;
/// Narrower than this leaves no room for the devices below 4 GiB.
const MIN_PHYS_BITS: u8 = 32;

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A right that Landlock does not have.
    #[error("The access {0:?} of a Landlock rule is none of r, w, rw")]
    LandlockAccess(String),
    /// Nothing to boot.
    #[error("Neither a kernel nor firmware is given")]
    NoKernel,
    /// Two things to boot.
    #[error("Kernel and firmware exclude each other")]
    KernelAndFirmware,
    /// A feature that this program does not have.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// Number of vCPUs.
    #[error("cpus.boot_vcpus and cpus.max_vcpus must be 1 to {MAX_VCPUS}, not {0}")]
    VcpuCount(u32),
    /// The host's limit.
    #[error("cpus.max_vcpus is {asked}, this host's KVM allows {limit}")]
    HostVcpuLimit {
        /// What was asked for.
        asked: u32,
        /// What the host allows.
        limit: usize,
    },
    /// More at boot than at all.
    #[error("{boot} vCPUs at boot are more than the maximum of {max}")]
    BootOverMax {
        /// At boot.
        boot: u32,
        /// At all.
        max: u32,
    },
    /// The topology does not add up.
    #[error("The topology has room for {product} vCPUs, the maximum is {max}")]
    Topology {
        /// Product of its levels.
        product: u64,
        /// vCPUs at all.
        max: u32,
    },
    /// Physical address width.
    #[error("{0} physical address bits are too few")]
    PhysBits(u8),
    /// Memory without an address.
    #[error("{size} bytes of memory do not fit into {bits} physical address bits")]
    MemoryBeyondAddresses {
        /// The memory.
        size: u64,
        /// Address bits that the guest has on this host.
        bits: u8,
    },
    /// CPUs for a vCPU that does not exist.
    #[error("CPUs are given for vCPU {0}, which does not exist")]
    NoSuchVcpu(u32),
    /// A vCPU that could run nowhere, or whose CPUs are given twice.
    #[error("vCPU {0} needs one list of CPUs that is not empty")]
    VcpuCpus(u32),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryConfigError),
    /// A name that no device can have.
    #[error(
        "Invalid id {0:?}: an id has 1 to {MAX_ID} bytes, no control characters, and does not \
         begin with __"
    )]
    DeviceId(String),
    /// A segment that does not exist.
    #[error("There is no PCI segment {0}")]
    PciSegment(u16),
    /// A place on the bus that does not exist.
    #[error("PCI slot {0} is out of range (1 to 31)")]
    PciDevice(u8),
    /// A disk without an image.
    #[error("A disk has no path")]
    DiskPath,
    /// Queues of a disk.
    #[error("invalid num_queues {asked} of a disk: at most {vcpus}, the number of vCPUs")]
    DiskQueues {
        /// What was asked for.
        asked: usize,
        /// How many make sense.
        vcpus: u32,
    },
    /// Entries of a disk's queue.
    #[error("invalid queue_size {0} of a disk: must be a power of two from 4 to 32768")]
    DiskQueueSize(u16),
    /// The guest would see a part of it.
    #[error("invalid serial {0:?} of a disk: at most 20 bytes")]
    DiskSerial(String),
    /// Both kinds of limits.
    #[error("A disk has limits of its own and those of a group")]
    TwoLimits,
    /// A group that does not exist.
    #[error("There is no rate limit group {0}")]
    NoSuchGroup(String),
    /// Two groups of one name.
    #[error("There are two rate limit groups {0}")]
    SameGroup(String),
    /// CPUs for a queue that does not exist.
    #[error("CPUs are given for queue {0}, which does not exist")]
    NoSuchQueue(u16),
    /// A network device.
    #[error("Invalid network device")]
    Net(#[from] NetConfigError),
    /// A context identifier with a meaning of its own.
    #[error("{0} is not possible as a guest's context identifier: 3 to 4294967294 are")]
    Cid(u32),
    /// The guest would have nothing left.
    #[error("A balloon of {size} bytes does not fit into {memory} bytes of memory")]
    BalloonSize {
        /// The balloon.
        size: u64,
        /// The guest's memory.
        memory: u64,
    },
    /// A UUID that is none.
    #[error("{0:?} is no UUID, which looks like 6c1d8f0e-5a2b-4c3d-9e8f-001122334455")]
    Uuid(String),
    /// A name that the tables cannot hold.
    #[error("{0:?} cannot be a string of the platform: it is empty or contains a zero byte")]
    PlatformString(String),
    /// More strings than fit.
    #[error("{0} OEM strings are given, 255 are possible")]
    OemStrings(usize),
    /// A console without its socket.
    #[error("The {0} is to go to a socket, and no path is given")]
    NoConsoleSocket(&'static str),
    /// A console without its file.
    #[error("The {0} is to go to a file, and no file is given")]
    NoConsoleFile(&'static str),
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmParams {
    /// Virtual CPUs.
    pub cpus: CpuParams,
    /// Memory, in the order of its addresses.
    pub memory: Vec<Zone>,
    /// What to boot.
    pub payload: Payload,
    /// What the machine is called.
    pub identity: Identity,
    /// Where serial port, virtio console and debug port lead.
    pub consoles: ConsoleTargets,
    /// The debug port's address; there is none if absent.
    pub debug_port: Option<u16>,
    /// Devices on the PCI bus.
    pub devices: DeviceParams,
    /// What of the exit accounting it gets; what the host gives by itself if
    /// absent.
    pub exit_stats: Option<ExitStatsConfig>,
}

/// Checked virtual CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuParams {
    /// How many there are.
    pub count: u32,
    /// How many there can be at all.
    pub max: u32,
    /// How they make up cores and packages.
    pub topology: Topology,
    /// Upper bound of the physical address width.
    pub max_phys_bits: u8,
    /// The guest may run guests of its own.
    pub nested: bool,
    /// The host's CPUs that each vCPU may run on, where it may not on all.
    pub affinity: Vec<Vec<usize>>,
}

impl TryFrom<&VmConfig> for VmParams {
    type Error = ConfigError;

    fn try_from(config: &VmConfig) -> Result<Self, ConfigError> {
        unsupported::check(config)?;
        let payload = payload(config.payload.as_ref())?;
        Ok(VmParams {
            cpus: cpus(&config.cpus)?,
            memory: memory::zones(&config.memory)?,
            payload,
            identity: identity::identity(config.platform.as_ref())?,
            consoles: ConsoleTargets::try_from(config)?,
            debug_port: console::debug_port(&config.debug_console),
            devices: DeviceParams::try_from(config)?,
            exit_stats: config.exit_stats,
        })
    }
}

fn payload(payload: Option<&PayloadConfig>) -> Result<Payload, ConfigError> {
    let payload = payload.ok_or(ConfigError::NoKernel)?;
    match (&payload.kernel, &payload.firmware) {
        (Some(_), Some(_)) => Err(ConfigError::KernelAndFirmware),
        (None, Some(firmware)) => {
            if payload.cmdline.is_some() || payload.initramfs.is_some() {
                log::warn!("command line and initramfs are ignored: firmware looks for a kernel");
            }
            Ok(Payload {
                kernel: firmware.clone(),
                firmware: true,
                initramfs: None,
                cmdline: String::new(),
            })
        }
        (None, None) => Err(ConfigError::NoKernel),
        (Some(kernel), None) => Ok(Payload {
            kernel: kernel.clone(),
            firmware: false,
            initramfs: payload.initramfs.clone(),
            cmdline: payload.cmdline.clone().unwrap_or_default(),
        }),
    }
}

fn cpus(cpus: &CpusConfig) -> Result<CpuParams, ConfigError> {
    let (boot, max) = (cpus.boot_vcpus, cpus.max_vcpus);
    for count in [boot, max] {
        if !(1..=MAX_VCPUS).contains(&count) {
            return Err(ConfigError::VcpuCount(count));
        }
    }
    if boot > max {
        return Err(ConfigError::BootOverMax { boot, max });
    }
    if max > boot {
        log::warn!("vCPUs cannot be added to a running machine yet: {boot} it is, not {max}");
    }
    if cpus.max_phys_bits < MIN_PHYS_BITS {
        return Err(ConfigError::PhysBits(cpus.max_phys_bits));
    }
    let topology = match &cpus.topology {
        None => Topology::flat(boot),
        Some(given) => {
            let levels = [
                given.threads_per_core,
                given.cores_per_die,
                given.dies_per_package,
                given.packages,
            ];
            let product: u64 = levels.into_iter().map(u64::from).product();
            if product != u64::from(max) {
                return Err(ConfigError::Topology { product, max });
            }
            Topology {
                threads_per_core: given.threads_per_core.into(),
                cores_per_die: given.cores_per_die.into(),
                dies_per_package: given.dies_per_package.into(),
            }
        }
    };
    Ok(CpuParams {
        count: boot,
        max,
        topology,
        max_phys_bits: cpus.max_phys_bits,
        nested: cpus.nested,
        affinity: affinity(cpus)?,
    })
}

/// Checks the identifier of a device, a memory zone or a group of limits. It
/// goes into events, labels and log lines as it is: without control characters
/// it stays on its line wherever it is shown.
fn check_id(id: &str) -> Result<(), ConfigError> {
    let valid = (1..=MAX_ID).contains(&id.len())
        && !id.starts_with("__")
        && !id.chars().any(char::is_control);
    if valid {
        Ok(())
    } else {
        Err(ConfigError::DeviceId(id.to_owned()))
    }
}

fn affinity(cpus: &CpusConfig) -> Result<Vec<Vec<usize>>, ConfigError> {
    let mut affinity = vec![Vec::new(); cpus.boot_vcpus as usize];
    for given in cpus.affinity.iter().flatten() {
        match affinity.get_mut(given.vcpu as usize) {
            None => return Err(ConfigError::NoSuchVcpu(given.vcpu)),
            Some(list) if list.is_empty() && !given.host_cpus.is_empty() => {
                list.clone_from(&given.host_cpus);
            }
            Some(_) => return Err(ConfigError::VcpuCpus(given.vcpu)),
        }
    }
    Ok(affinity)
}

#[cfg(test)]
mod tests;
