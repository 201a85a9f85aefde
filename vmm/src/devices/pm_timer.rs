//! The ACPI power management timer (ACPI 6.5, section 4.8.3.3), by which
//! firmware and boot loaders measure time, an exit a look. The tables name it
//! on machines that have it; Linux knows it then as a clock, and takes
//! kvmclock.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::bus::BusDevice;

/// Ticks per second.
const FREQUENCY: u128 = 3_579_545;
const NANOSECONDS: u128 = 1_000_000_000;

/// Counts from the machine's start, 32 bits wide.
#[derive(Debug)]
pub struct PmTimer {
    start: Instant,
    /// What it had counted before.
    before: AtomicU32,
}

impl PmTimer {
    /// A timer that starts now.
    #[must_use]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            before: AtomicU32::new(0),
        }
    }

    /// What it has counted.
    #[must_use]
    pub fn count(&self) -> u32 {
        let before = self.before.load(Ordering::Relaxed);
        before.wrapping_add(ticks(self.start.elapsed()))
    }

    /// Has it go on from there.
    pub fn set_count(&self, count: u32) {
        let before = count.wrapping_sub(ticks(self.start.elapsed()));
        self.before.store(before, Ordering::Relaxed);
    }
}

impl Default for PmTimer {
    fn default() -> Self {
        Self::new()
    }
}

fn ticks(elapsed: Duration) -> u32 {
    (elapsed.as_nanos() * FREQUENCY / NANOSECONDS) as u32
}

impl BusDevice for PmTimer {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let rest = self.count().to_le_bytes().into_iter().skip(offset as usize);
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = value;
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_ticks_and_the_counter_wraps() {
        assert_eq!(ticks(Duration::ZERO), 0);
        assert_eq!(ticks(Duration::from_secs(1)), 3_579_545);
        assert_eq!(
            ticks(Duration::from_secs(1200)),
            (1200 * 3_579_545_u64) as u32
        );
        let century = Duration::from_secs(100 * 365 * 86_400);
        let after = ticks(century + Duration::from_millis(1));
        assert_eq!(after.wrapping_sub(ticks(century)), 3_579);
    }

    #[test]
    fn counts_from_the_start_and_a_part_is_a_part_of_the_whole() {
        let started = Instant::now();
        let timer = PmTimer::new();
        std::thread::sleep(Duration::from_millis(20));
        let least = ticks(Duration::from_millis(20));
        let (mut whole, mut high) = ([0; 4], [0; 2]);
        timer.read(0, &mut whole);
        timer.read(2, &mut high);
        let most = ticks(started.elapsed());
        let whole = u32::from_le_bytes(whole);
        assert!((least..=most).contains(&whole), "{least} {whole} {most}");
        let high = u32::from(u16::from_le_bytes(high));
        assert!(
            (whole >> 16..=most >> 16).contains(&high),
            "{whole} {high} {most}"
        );
    }

    #[test]
    fn goes_on_from_what_was_counted() {
        let timer = PmTimer::new();
        timer.set_count(u32::MAX - 5);
        let passed = timer.count().wrapping_sub(u32::MAX - 5);
        assert!(passed < 3_579_545, "{passed} ticks");
    }
}
