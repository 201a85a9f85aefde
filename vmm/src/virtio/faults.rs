//! What guests do wrong: counted always, logged seldom, so that a guest can
//! fill neither the disk nor the operator's day.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many lines in one period.
const LINES: u32 = 5;
const PERIOD: Duration = Duration::from_secs(10);

struct Period {
    since: Instant,
    lines: u32,
}

/// The faults of one device's driver.
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

    /// Counts a fault, and logs it unless many were logged just now.
    pub fn report(&self, fault: &dyn Display) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if self.may_log(Instant::now()) {
            log::warn!("{}: the driver is at fault ({count}): {fault}", self.device);
        }
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn may_log(&self, now: Instant) -> bool {
        let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match &mut *period {
            Some(current) if now.duration_since(current.since) < PERIOD => current,
            expired => expired.insert(Period {
                since: now,
                lines: 0,
            }),
        };
        current.lines += 1;
        current.lines <= LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_counts_and_few_are_logged() {
        let faults = GuestFaults::new("a");
        let start = Instant::now();
        let logged = |at| (0..100).filter(|_| faults.may_log(at)).count();
        assert_eq!(logged(start), LINES as usize);
        assert_eq!(logged(start + PERIOD / 2), 0);
        assert_eq!(logged(start + PERIOD), LINES as usize);
        for _ in 0..100 {
            faults.report(&"nonsense");
        }
        assert_eq!(faults.count(), 100);
    }
}
