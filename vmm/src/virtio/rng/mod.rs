//! The entropy device (virtio 1.3, 5.4).
//!
//! | queue | carries |
//! | --- | --- |
//! | 0 | buffers that the device fills with random bytes |
//!
//! Features offered: none of its own; there are none. No configuration.
//!
//! The driver's buffers are the only input, so `request` is all of the
//! parsing. The example to copy for another device: `device` is what the
//! transport talks to, `worker` what runs on the device's thread.

mod device;
mod request;
#[cfg(test)]
mod tests;
mod worker;

pub use device::Rng;
