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

pub use device::Watchdog;
