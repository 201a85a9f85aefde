//! What goes wrong with a device: counted always, logged seldom, so that a
//! guest can fill neither the disk nor the operator's day.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::log_limit::LogLimit;

/// The faults of one device's driver, and of what the host gives the device.
/// There is one for the whole life of a device.
pub struct GuestFaults {
    count: AtomicU64,
    limit: LogLimit,
}

impl GuestFaults {
    /// No fault yet.
    #[must_use]
    pub fn new(device: &str) -> Self {
        Self {
            count: AtomicU64::new(0),
            limit: LogLimit::new(device),
        }
    }

    /// Counts a fault of the driver, and logs it unless many lines were logged
    /// just now.
    pub fn report(&self, fault: &dyn Display) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        self.limit
            .warn(&format_args!("the driver is at fault ({count}): {fault}"));
    }

    /// Logs, within the same limit, what the host refused the device. No fault
    /// of the driver's.
    pub fn report_host(&self, error: &dyn Display) {
        self.limit.warn(error);
    }

    /// Faults of the driver so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Lines logged and left out in this period.
    #[cfg(test)]
    pub(super) fn lines(&self) -> (u32, u64) {
        self.limit.lines()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_counts_and_few_are_logged() {
        let faults = GuestFaults::new("a");
        for _ in 0..100 {
            faults.report(&"nonsense");
            faults.report_host(&"nothing left");
        }
        assert_eq!(faults.count(), 100);
        assert_eq!(faults.lines(), (5, 195));
    }
}
