//! The memory balloon (virtio 1.3, 5.5): the guest gives memory back to the
//! host, as much as it is asked to, or what it does not use.
//!
//! | queue | carries |
//! | --- | --- |
//! | 0 | lists of pages that the guest gives up |
//! | 1 | lists of pages that it takes back |
//! | 2 | pages that it does not use at the moment, if it reports them |
//!
//! Features offered, as configured: taking memory back rather than running out
//! of it, reports of free pages. Refused: telling before pages are taken back
//! (the host gives a page whenever it is touched), statistics, hints of free
//! pages (which serve migration), poison values.

mod device;
mod request;
#[cfg(test)]
mod tests;
mod worker;

pub use device::{Balloon, BalloonParams, BalloonSize};
