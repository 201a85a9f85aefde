//! The watchdog: resets a guest that has begun to ping it and then falls
//! silent. The standard reserves the device's number, 35, and says no more;
//! the protocol is Cloud Hypervisor's.
//!
//! | queue | carries |
//! | --- | --- |
//! | 0 | pings: a buffer, into whose first byte the device writes a one |
//!
//! Features offered: none of its own; there are none. No configuration.

mod device;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;

pub use device::Watchdog;

use crate::pci::FlagDevice;
use crate::virtio::transport::pci::VirtioPci;

/// The device that the configuration's `watchdog` asks for.
pub const DEVICE: FlagDevice = FlagDevice {
    id: "__watchdog",
    is_wanted: |config| config.watchdog,
    create: |id, address, context| {
        let watchdog = Box::new(Watchdog::new(id, context.events.clone())?);
        let function: Arc<_> = VirtioPci::new(id, address, watchdog, context)?;
        Ok(function)
    },
};
