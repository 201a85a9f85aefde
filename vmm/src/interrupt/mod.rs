//! Interrupts: all of them are messages to local APICs. Each has an event that
//! the hypervisor turns into the message by itself, so that raising one costs
//! no trip through a vCPU thread.

mod msi;
#[cfg(test)]
pub(crate) mod testing;

pub use msi::{MsiMessage, MsiRouter, MsiVector};

/// Why an interrupt cannot be had.
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
