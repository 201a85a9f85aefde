//! How often something may be logged that others can make happen again and
//! again.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines in one period.
pub(crate) const LINES: u32 = 5;
/// Long in tests, which count what one period lets through.
const PERIOD: Duration = Duration::from_secs(if cfg!(test) { 3600 } else { 10 });

struct Period {
    since: Instant,
    lines: u32,
    /// Lines that were left out.
    suppressed: u64,
}

/// A limit on the warnings of one origin, which names it at their beginning.
/// Lives as long as the origin: whoever could have it made anew would have no
/// limit.
pub struct LogLimit {
    origin: String,
    /// In one period.
    most: u32,
    period: Mutex<Option<Period>>,
}

impl LogLimit {
    /// Nothing was logged yet.
    #[must_use]
    pub fn new(origin: &str) -> Self {
        Self::of(LINES, origin)
    }

    /// The same for something else than lines, of which there may be more.
    #[must_use]
    pub fn of(most: u32, origin: &str) -> Self {
        Self {
            origin: origin.to_owned(),
            most,
            period: Mutex::new(None),
        }
    }

    /// Logs a line unless many were logged just now.
    pub fn warn(&self, line: &dyn Display) {
        match self.allows() {
            Some(0) => log::warn!("{}: {line}", self.origin),
            Some(suppressed) => {
                log::warn!(
                    "{}: {line} ({suppressed} lines before it left out)",
                    self.origin
                );
            }
            None => {}
        }
    }

    /// Whether one more is within the limit now: how many were left out before
    /// it.
    pub fn allows(&self) -> Option<u64> {
        self.allows_at(Instant::now())
    }

    fn allows_at(&self, now: Instant) -> Option<u64> {
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
        if current.lines == self.most {
            current.suppressed += 1;
            return None;
        }
        current.lines += 1;
        Some(std::mem::take(&mut current.suppressed))
    }

    /// Lines logged and left out in this period.
    #[cfg(test)]
    pub(crate) fn lines(&self) -> (u32, u64) {
        let period = self.period.lock().unwrap();
        period
            .as_ref()
            .map_or((0, 0), |period| (period.lines, period.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_lines_are_logged_and_the_next_one_tells_of_the_others() {
        let limit = LogLimit::new("a");
        let start = Instant::now();
        let logged = |at| {
            (0..100)
                .filter_map(|_| limit.allows_at(at))
                .collect::<Vec<_>>()
        };
        assert_eq!(logged(start), [0; LINES as usize]);
        assert!(logged(start + PERIOD / 2).is_empty());
        assert_eq!(logged(start + PERIOD), [195, 0, 0, 0, 0]);
    }
}
