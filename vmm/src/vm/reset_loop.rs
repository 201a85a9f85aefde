//! Notices a guest that does nothing but reset its machine, such as one that
//! does not find what it needs and starts over.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// More resets than this within [`WINDOW`] are a loop.
const LIMIT: usize = 5;
const WINDOW: Duration = Duration::from_secs(1);
/// How long a loop that goes on is not reported again.
const PAUSE: Duration = Duration::from_secs(60);

/// Owned by the control thread; outlives the machine, which is made anew at
/// each reset.
#[derive(Debug, Default)]
pub(super) struct ResetLoop {
    recent: VecDeque<Instant>,
    driver_ran: bool,
    reported: Option<Instant>,
}

impl ResetLoop {
    /// The guest's driver has taken a device into use: it gets somewhere.
    pub(super) fn driver_ran(&mut self) {
        self.driver_ran = true;
    }

    /// The guest resets the machine. True if that is to be reported as a loop.
    pub(super) fn is_loop(&mut self, now: Instant) -> bool {
        if std::mem::take(&mut self.driver_ran) {
            self.recent.clear();
            return false;
        }
        self.recent.push_back(now);
        while self
            .recent
            .front()
            .is_some_and(|&oldest| now.duration_since(oldest) > WINDOW)
        {
            self.recent.pop_front();
        }
        if self.recent.len() <= LIMIT
            || self
                .reported
                .is_some_and(|reported| now.duration_since(reported) < PAUSE)
        {
            return false;
        }
        self.recent.clear();
        self.reported = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many resets, this far apart, are reported.
    fn reports(resets: u32, apart: Duration, driver: bool) -> usize {
        let mut watch = ResetLoop::default();
        let start = Instant::now();
        (0..resets)
            .filter(|&reset| {
                if driver {
                    watch.driver_ran();
                }
                watch.is_loop(start + apart * reset)
            })
            .count()
    }

    #[test]
    fn guest_that_only_resets_is_reported_once_a_minute() {
        let often = Duration::from_millis(100);
        assert_eq!(reports(5, often, false), 0);
        assert_eq!(reports(6, often, false), 1);
        assert_eq!(reports(600, often, false), 1);
        assert_eq!(reports(1000, often, false), 2);
    }

    #[test]
    fn guest_that_resets_now_and_then_or_runs_a_driver_is_not() {
        assert_eq!(reports(600, Duration::from_millis(250), false), 0);
        assert_eq!(reports(600, Duration::from_millis(1), true), 0);
    }
}
