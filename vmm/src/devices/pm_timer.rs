//! The ACPI power management timer (ACPI 6.5, section 4.8.3.3), by which
//! firmware measures time. The tables do not name it, so that kernels use the
//! clocks that cost no exit.

use std::time::Instant;

use crate::bus::BusDevice;

/// Ticks per second.
const FREQUENCY: u128 = 3_579_545;
const NANOSECONDS: u128 = 1_000_000_000;

/// Counts from the machine's start, 32 bits wide.
#[derive(Debug)]
pub struct PmTimer(Instant);

impl PmTimer {
    /// A timer that starts now.
    #[must_use]
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for PmTimer {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for PmTimer {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let ticks = (self.0.elapsed().as_nanos() * FREQUENCY / NANOSECONDS) as u32;
        let rest = ticks.to_le_bytes().into_iter().skip(offset as usize);
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = value;
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    fn ticks(timer: &PmTimer) -> u32 {
        let mut data = [0; 4];
        timer.read(0, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn counts_the_time_that_passes() {
        let started = Instant::now();
        let timer = PmTimer::new();
        sleep(Duration::from_millis(20));
        let counted = ticks(&timer);
        let most = started.elapsed().as_micros() * FREQUENCY / 1_000_000 + 1;
        assert!(
            counted >= 71_590 && u128::from(counted) <= most,
            "{counted}"
        );
    }

    #[test]
    fn a_part_is_a_part_of_the_whole() {
        let timer = PmTimer(Instant::now() - Duration::from_secs(3600));
        let mut high = [0; 2];
        timer.read(2, &mut high);
        assert_eq!(u32::from(u16::from_le_bytes(high)), ticks(&timer) >> 16);
    }
}
