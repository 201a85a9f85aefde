//! The console (virtio 1.3, 5.3), with one port.
//!
//! | queue | carries |
//! | --- | --- |
//! | 0 | buffers that the device fills with input |
//! | 1 | output |
//!
//! Features offered: the size, where the host's end has one. Refused: several
//! ports, writing without a queue.
//!
//! What it is connected to is a [`CharBackend`](crate::chardev::CharBackend).
//! Output that nobody takes is dropped: a guest waits for its console with
//! interrupts off.

mod device;
#[cfg(test)]
mod tests;
mod worker;

pub use device::{Console, ConsoleSize};
