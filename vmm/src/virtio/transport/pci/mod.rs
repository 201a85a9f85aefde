//! Virtio over PCI (virtio 1.3, 4.1), without the legacy interface.
//!
//! One BAR holds everything:
//!
//! | offset | what | the guest's reads | its writes |
//! | --- | --- | --- | --- |
//! | 0x0000 | common configuration | memory | exit |
//! | 0x0100 | the device's configuration | memory | exit |
//! | 0x1000 | MSI-X table | memory | exit |
//! | 0x2000 | interrupt status | exit, they clear it | – |
//! | 0x2800 | MSI-X pending bits | exit | – |
//! | 0x3000 | doorbells, one per queue | – | go to the device's thread |
//!
//! The first two pages are a window that the guest reads without an exit: each
//! write is followed by storing what the registers look like now. Bringing up
//! a device then exits for the driver's writes only.
//!
//! Registers belong to a lock that vCPU threads take; devices' threads never
//! do. What those need, interrupts and the request for a reset, lies in
//! [`interrupt`], beside it.

mod common;
mod function;
mod inspect;
mod interrupt;
mod registers;
#[cfg(test)]
mod tests;

pub use function::{FUNCTION_PREFIX, TransportError, VirtioPci, VirtioPciState};

/// Common configuration.
const COMMON: usize = 0x0000;
/// The device's own configuration.
const DEVICE: usize = 0x0100;
const DEVICE_END: usize = 0x1000;
/// MSI-X table.
const TABLE: usize = 0x1000;
const TABLE_END: usize = 0x2000;
/// Where the part ends that is read without exits.
const WINDOW: usize = 0x2000;
/// Interrupt status.
const ISR: usize = 0x2000;
/// MSI-X pending bits.
const PENDING: usize = 0x2800;
const PENDING_END: usize = 0x3000;
/// Doorbells.
const NOTIFY: usize = 0x3000;
/// Distance of two queues' doorbells.
const NOTIFY_STEP: u32 = 4;
const BAR_SIZE: usize = 0x4000;

/// A vector for each queue, and one for changes of the configuration.
const MAX_VECTORS: usize = (TABLE_END - TABLE) / crate::pci::ENTRY_SIZE;
const _: () = assert!(MAX_VECTORS * NOTIFY_STEP as usize <= BAR_SIZE - NOTIFY);
