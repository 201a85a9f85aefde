//! Interrupt lines: an event per line that the hypervisor turns into an
//! interrupt by itself, so that raising one costs no trip through a vCPU
//! thread.

mod msi;
#[cfg(test)]
pub(crate) mod testing;

use hypervisor::{IrqRoute, Vm};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::layout::IOAPIC_PINS;

pub use msi::{MsiMessage, MsiRouter, MsiVector};

/// Why a line cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum InterruptError {
    /// No event descriptor could be made.
    #[error("Cannot create an event for interrupt {0}")]
    Event(u32, #[source] std::io::Error),
    /// The hypervisor refused.
    #[error("Cannot connect interrupt {0}")]
    Connect(u32, #[source] hypervisor::Error),
    /// The hypervisor refused the routing table.
    #[error("Cannot route interrupts")]
    Route(#[source] hypervisor::Error),
}

/// An edge-triggered interrupt line.
#[derive(Debug)]
pub struct IrqLine {
    event: EventFd,
}

impl IrqLine {
    /// Connects a new line to the interrupt `gsi`.
    pub fn connect(vm: &dyn Vm, gsi: u32) -> Result<Self, InterruptError> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|source| InterruptError::Event(gsi, source))?;
        vm.register_irqfd(&event, gsi)
            .map_err(|source| InterruptError::Connect(gsi, source))?;
        Ok(Self { event })
    }

    /// Raises the interrupt once.
    pub fn raise(&self) -> std::io::Result<()> {
        self.event.write(1)
    }
}

/// The I/O APIC's pins and nothing else: there is no 8259.
fn ioapic_routes() -> Vec<IrqRoute> {
    (0..IOAPIC_PINS)
        .map(|pin| IrqRoute::IoApic { gsi: pin, pin })
        .collect()
}
