//! What goes wrong with a device: counted always, logged seldom, so that a
//! guest can fill neither the disk nor the operator's day.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that one device may log in one period.
const LINES: u32 = 5;
const PERIOD: Duration = Duration::from_secs(10);

struct Period {
    since: Instant,
    lines: u32,
    /// Lines that were not logged.
    suppressed: u64,
}

/// The faults of one device's driver, and of what the host gives the device.
/// There is one for the whole life of a device: the limit would be none if the
/// guest could have it made anew.
pub struct GuestFaults {
    device: String,
    count: AtomicU64,
    period: Mutex<Option<Period>>,
}

impl GuestFaults {
    /// No fault yet.
    #[must_use]
    pub fn new(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            count: AtomicU64::new(0),
            period: Mutex::new(None),
        }
    }

    /// Counts a fault of the driver, and logs it unless many lines were logged
    /// just now.
    pub fn report(&self, fault: &dyn Display) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        self.log(&format_args!("the driver is at fault ({count}): {fault}"));
    }

    /// Logs, within the same limit, what the host refused the device. No fault
    /// of the driver's.
    pub fn report_host(&self, error: &dyn Display) {
        self.log(error);
    }

    /// Faults of the driver so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Lines logged and left out in this period.
    #[cfg(test)]
    pub(super) fn lines(&self) -> (u32, u64) {
        let period = self.period.lock().unwrap();
        period
            .as_ref()
            .map_or((0, 0), |period| (period.lines, period.suppressed))
    }

    fn log(&self, line: &dyn Display) {
        match self.may_log(Instant::now()) {
            Some(0) => log::warn!("{}: {line}", self.device),
            Some(suppressed) => {
                log::warn!(
                    "{}: {line} ({suppressed} lines before it left out)",
                    self.device
                );
            }
            None => {}
        }
    }

    /// Whether a line may be logged now: how many were left out before it.
    fn may_log(&self, now: Instant) -> Option<u64> {
        let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match &mut *period {
            Some(current) if now.duration_since(current.since) < PERIOD => current,
            expired => {
                let suppressed = expired.as_ref().map_or(0, |expired| expired.suppressed);
                expired.insert(Period {
                    since: now,
                    lines: 0,
                    suppressed,
                })
            }
        };
        if current.lines == LINES {
            current.suppressed += 1;
            return None;
        }
        current.lines += 1;
        Some(std::mem::take(&mut current.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_counts_and_few_are_logged() {
        let faults = GuestFaults::new("a");
        let start = Instant::now();
        let logged = |at| {
            (0..100)
                .filter_map(|_| faults.may_log(at))
                .collect::<Vec<_>>()
        };
        assert_eq!(logged(start), [0; LINES as usize]);
        assert!(logged(start + PERIOD / 2).is_empty());
        assert_eq!(logged(start + PERIOD), [195, 0, 0, 0, 0]);
        for _ in 0..100 {
            faults.report(&"nonsense");
            faults.report_host(&"nothing left");
        }
        assert_eq!(faults.count(), 100);
    }
}
