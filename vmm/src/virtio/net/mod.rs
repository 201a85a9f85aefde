//! The network device (virtio 1.3, 5.1), with a tap interface on the host's
//! side.
//!
//! | queue | carries |
//! | --- | --- |
//! | 2 n | packets to the guest, pair n |
//! | 2 n + 1 | packets from the guest, pair n |
//! | after the last pair in use | commands of the driver |
//!
//! Features offered: checksum and segmentation offload both ways (as
//! configured, and changeable while the device is active), receive buffers
//! that merge, MAC, MTU, several queue pairs, the control queue. Refused:
//! filters (a tap gets every packet that the host's bridge sends it), status
//! and announcements (the link is always up), receive-side scaling and hash
//! reports (the tap steers flows by itself), coalescing.
//!
//! Each pair has a thread, the first one's serves the control queue as well.
//! Packets go between tap and guest memory with one call of the kernel and no
//! copy of ours: [`receive`] and [`transmit`] are the hot path. [`tap`] makes
//! and sets up the host's interface, [`ioctl`] has the unsafe calls,
//! [`steering`] keeps the tap from using pairs that the driver does not.

mod control;
mod counters;
mod device;
mod header;
#[expect(
    unsafe_code,
    reason = "requests to tap interfaces are raw system calls"
)]
mod ioctl;
mod receive;
mod steering;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;
mod worker;

pub use device::{Net, NetError, NetParams, TapSource};
pub use header::Offloads;
pub use ioctl::InterfaceNameError;
pub use tap::{InterfaceParams, TapError};
