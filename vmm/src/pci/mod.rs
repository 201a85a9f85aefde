//! The PCI bus of the machine: one segment with one bus, whose configuration
//! space is memory-mapped (ECAM); functions with memory BARs, capabilities and
//! MSI-X.
//!
//! Configuration registers have no side effects when read, so the guest reads
//! them from a window of memory and exits only to write them: walking the bus
//! costs a few exits instead of a hundred for each device. The ports 0xCF8 and
//! 0xCFC are there for firmware alone; with them, Linux uses them, two exits an
//! access.
//!
//! The control thread adds and removes functions; vCPU threads read and write
//! registers.

mod bar;
mod config_space;
mod host_bridge;
mod msix;
mod ports;
mod segment;
mod unit;

use std::fmt;

pub use bar::BarPlacer;
pub use config_space::{CONFIG_SIZE, ConfigSpace, Identity, capability, register};
pub use host_bridge::HostBridge;
pub use msix::{
    ENTRY_SIZE, MsixCapability, MsixState, MsixStateError, MsixTable, MsixVectorView, MsixVectors,
    NO_VECTOR,
};
pub use ports::PciConfigPorts;
pub use segment::{PciSegment, SLOTS};
pub use unit::{DeviceCounters, FlagDevice, PciContext, PciUnit, UnitError, show_counters};

/// What a function does with its configuration registers. Called from vCPU
/// threads, so it locks its own state.
pub trait PciFunction: Send + Sync {
    /// The id of the device that it belongs to.
    fn id(&self) -> &str;
    /// A guest writes 1, 2 or 4 bytes at `offset`.
    fn write_config(&self, offset: usize, data: &[u8]);
    /// All registers as the guest is to read them now.
    fn config(&self) -> [u8; CONFIG_SIZE];
    /// The function is off the bus: it answers at no address any more.
    fn detach(&self) {}
}

/// The place of a function: segment, bus and function are always zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddress {
    /// Device number, below [`SLOTS`].
    pub device: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.0", self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_lspci_does() {
        assert_eq!(PciAddress { device: 0x1f }.to_string(), "0000:00:1f.0");
    }
}
