//! The configuration of a virtual machine as `vm.create` receives it and
//! `vm.info` returns it: one file per resource, Cloud Hypervisor's names and
//! defaults.
//!
//! These are wire types. A field that a reader does not know is ignored, an
//! absent optional field stays absent when written, and no check is made here
//! beyond the type: the VMM checks a configuration when it boots it.

mod balloon;
mod console;
mod cpus;
mod devices;
mod disk;
mod exit_stats;
mod fields;
mod fs;
mod landlock;
mod memory;
mod net;
mod numa;
mod payload;
mod pci;
mod platform;
mod pmem;
mod rate_limit;
mod restore;
mod rng;
mod schema;
pub(crate) mod unimplemented;
mod vm;
mod vsock;

pub use balloon::BalloonConfig;
pub use console::{
    ConsoleConfig, ConsoleOutputMode, DEBUG_CONSOLE_IO_BASE, DebugConsoleConfig, SerialConfig,
};
pub use cpus::{
    CoreScheduling, CpuAffinity, CpuFeatures, CpuProfile, CpuTopology, CpusConfig,
    DEFAULT_MAX_PHYS_BITS,
};
pub use devices::{
    DeviceConfig, GenericVhostUserConfig, RtcConfig, TpmConfig, UserDeviceConfig, VdpaConfig,
};
pub use disk::{DiskConfig, ImageType, LockGranularity, VirtQueueAffinity};
pub use exit_stats::ExitStatsConfig;
pub use fs::FsConfig;
pub use landlock::LandlockConfig;
pub use memory::{DEFAULT_MEMORY_SIZE, HotplugMethod, MemoryConfig, MemoryZoneConfig};
pub use net::{MacAddr, MacAddrError, NetConfig, VhostMode};
pub use numa::{NumaConfig, NumaDistance};
pub use payload::PayloadConfig;
pub use pci::{PciCommon, PciSegmentConfig};
pub use platform::PlatformConfig;
pub use pmem::PmemConfig;
pub use rate_limit::{RateLimiterConfig, RateLimiterGroupConfig, TokenBucketConfig};
pub use restore::{MemoryRestoreMode, RestoreConfig, RestoredNetConfig, VmSnapshotConfig};
pub use rng::RngConfig;
pub use schema::unknown_field;
pub use vm::VmConfig;
pub use vsock::VsockConfig;

#[cfg(test)]
mod tests;
