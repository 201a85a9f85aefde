//! pvpanic: a register by which a guest tells that its kernel panicked. QEMU has
//! defined it (docs/specs/pvpanic); Linux has the driver pvpanic-pci.
//!
//! | offset of BAR 0 | read | written |
//! | --- | --- | --- |
//! | 0, one byte | the events that can be told | the events that have happened |
//!
//! Events: bit 0, the kernel panicked; bit 1, it did and starts its crash kernel.

mod device;
#[cfg(test)]
mod tests;

pub use device::Pvpanic;

use crate::pci::FlagDevice;

/// The device that the configuration's `pvpanic` asks for.
pub const DEVICE: FlagDevice = FlagDevice {
    id: "__pvpanic",
    is_wanted: |config| config.pvpanic,
    create: |id, address, context| Ok(Pvpanic::new(id, address, context)),
};
