//! Lines on standard error, limited in number.

use std::time::{Duration, Instant};

/// Lines within one period.
const MAX_LINES: u32 = 100;
const PERIOD: Duration = Duration::from_secs(60);

/// Where lines go; what passes the limit is counted and told later.
#[derive(Debug, Default)]
pub struct Log {
    period: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Log {
    /// Writes a line, unless too many were written in this minute.
    pub fn line(&mut self, text: &str, now: Instant) {
        for line in self.admitted(text, now) {
            eprintln!("ch-remote exporter: {line}");
        }
    }

    /// The lines to write.
    fn admitted(&mut self, text: &str, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        if self.period.is_none_or(|begin| now >= begin + PERIOD) {
            if self.left_out > 0 {
                lines.push(format!("{} messages were left out", self.left_out));
            }
            (self.period, self.lines, self.left_out) = (Some(now), 0, 0);
        }
        if self.lines < MAX_LINES {
            self.lines += 1;
            lines.push(text.to_owned());
        } else {
            self.left_out += 1;
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_instead_of_written() {
        let (mut log, now) = (Log::default(), Instant::now());
        let written = (0..MAX_LINES + 7)
            .flat_map(|_| log.admitted("x", now))
            .count();
        assert_eq!(written, MAX_LINES as usize);
        assert_eq!(
            log.admitted("y", now + PERIOD),
            ["7 messages were left out", "y"]
        );
    }
}
