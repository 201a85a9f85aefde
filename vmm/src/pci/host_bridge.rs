//! The function at 00:00.0, by which firmware recognises the machine.

use std::sync::{Mutex, PoisonError};

use super::config_space::ForeignRegisters;
use super::{CONFIG_SIZE, ConfigSpace, Identity, PciFunction};

// Firmware that was built for this kind of machine looks for these numbers.
const VENDOR: u16 = 0x8086;
const DEVICE: u16 = 0x0d57;
const CLASS_HOST_BRIDGE: [u8; 3] = [0x06, 0x00, 0x00];

/// A host bridge without any function of its own.
pub struct HostBridge(Mutex<ConfigSpace>);

impl HostBridge {
    /// The bridge.
    #[must_use]
    pub fn new() -> Self {
        Self(Mutex::new(ConfigSpace::new(&Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: 0,
            class: CLASS_HOST_BRIDGE,
            subsystem: (0, 0),
        })))
    }
}

impl HostBridge {
    /// Puts back what [`config`](PciFunction::config) told.
    ///
    /// # Errors
    /// They are the registers of something else.
    pub fn restore(&self, registers: &[u8]) -> Result<(), ForeignRegisters> {
        let mut space = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        space.restore(registers)
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn id(&self) -> &str {
        "host_bridge"
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut space = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        space.write(offset, data);
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        *self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes()
    }
}
