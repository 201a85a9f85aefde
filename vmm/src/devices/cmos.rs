//! The clock of a PC (Motorola's MC146818, as Intel's chipsets have it), by
//! which firmware knows the date. It shows the host's UTC and cannot be set.
//!
//! Without it EDK2 has no date, and asks for it ten thousand times at every
//! start. Kernels of these machines have kvmclock, and the tables say that
//! there is no such device.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::civil::DateTime;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};

use crate::bus::BusDevice;

const INDEX_PORT: u64 = 0;
const DATA_PORT: u64 = 1;
/// The index port's highest bit belongs to the NMI.
const INDEX: u8 = 0x7f;

const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const DAY_OF_WEEK: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const CENTURY: u8 = 0x32;
const STATUS_A: u8 = 0xa;
const STATUS_B: u8 = 0xb;
const STATUS_D: u8 = 0xd;

/// No update in progress; the time base and rate of a PC.
const DIVIDER: u8 = 0x26;
/// Hours count to 24, numbers are decimal.
const FORMAT: u8 = 0x02;
/// The battery is good.
const VALID: u8 = 0x80;

/// How long registers stay what they were, so that minutes belong to the
/// seconds that were read before.
const STEADY: SignedDuration = SignedDuration::from_secs(1);

struct State {
    index: u8,
    shown: Timestamp,
}

/// The two ports.
pub struct Cmos {
    now: fn() -> Timestamp,
    state: Mutex<State>,
}

impl Cmos {
    /// The host's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Timestamp::now)
    }

    fn with(now: fn() -> Timestamp) -> Self {
        Self {
            now,
            state: Mutex::new(State {
                index: 0,
                shown: Timestamp::UNIX_EPOCH,
            }),
        }
    }

    /// The index port. The time is the host's.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.state().index
    }

    /// Sets the index port.
    pub fn set_index(&self, index: u8) {
        self.state().index = index & INDEX;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, state: &mut State) -> u8 {
        let now = (self.now)();
        let age = now.duration_since(state.shown);
        // Whoever reads the time looks first whether an update is going on.
        if state.index == STATUS_A || age.abs() >= STEADY {
            state.shown = now;
        }
        let time = Offset::UTC.to_datetime(state.shown);
        match state.index {
            STATUS_A => DIVIDER,
            STATUS_B => FORMAT,
            STATUS_D => VALID,
            index => number(index, time).map_or(0, decimal),
        }
    }
}

impl Default for Cmos {
    fn default() -> Self {
        Self::new()
    }
}

/// The part of the time that a register holds, below a hundred.
fn number(index: u8, time: DateTime) -> Option<i16> {
    Some(match index {
        SECONDS => time.second().into(),
        MINUTES => time.minute().into(),
        HOURS => time.hour().into(),
        DAY_OF_WEEK => time.weekday().to_sunday_one_offset().into(),
        DAY => time.day().into(),
        MONTH => time.month().into(),
        YEAR => time.year().rem_euclid(100),
        CENTURY => time.year().div_euclid(100),
        _ => return None,
    })
}

/// Two decimal digits.
fn decimal(number: i16) -> u8 {
    (number / 10 * 16 + number % 10) as u8
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (DATA_PORT, [byte]) = (offset, data) {
            *byte = self.register(&mut self.state());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (INDEX_PORT, &[byte]) = (offset, data) {
            self.set_index(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    fn read(cmos: &Cmos, index: u8) -> u8 {
        cmos.write(0, &[index]);
        let mut data = [0];
        cmos.read(1, &mut data);
        data[0]
    }

    fn all(cmos: &Cmos) -> Vec<u8> {
        [
            CENTURY,
            YEAR,
            MONTH,
            DAY,
            HOURS,
            MINUTES,
            SECONDS,
            DAY_OF_WEEK,
        ]
        .map(|index| read(cmos, index))
        .to_vec()
    }

    #[test]
    fn time_is_utc_in_decimal_digits() {
        // date -u -d @1798761599
        let cmos = Cmos::with(|| Timestamp::from_second(1_798_761_599).unwrap());
        let expected = [0x20, 0x26, 0x12, 0x31, 0x23, 0x59, 0x59, 5];
        assert_eq!(all(&cmos), expected);
        // Bit 7 is not part of the index.
        assert_eq!(read(&cmos, 0x80 | YEAR), 0x26);
        assert_eq!(read(&cmos, STATUS_A) & 0x80, 0);
        assert_eq!(read(&cmos, STATUS_B), 0x02);
        assert_eq!(read(&cmos, STATUS_D), 0x80);
        assert_eq!(read(&cmos, 0xf), 0);
    }

    #[test]
    fn time_stands_still_while_it_is_read() {
        static NOW: AtomicI64 = AtomicI64::new(0);
        let set = |nanos: i64| NOW.store(1_798_761_599_000_000_000 + nanos, Ordering::Relaxed);
        set(999_999_000);
        let cmos =
            Cmos::with(|| Timestamp::from_nanosecond(NOW.load(Ordering::Relaxed).into()).unwrap());
        assert_eq!(read(&cmos, STATUS_A), DIVIDER);
        assert_eq!(read(&cmos, SECONDS), 0x59);
        set(1_000_001_000);
        assert_eq!(read(&cmos, YEAR), 0x26);
        assert_eq!(read(&cmos, STATUS_A), DIVIDER);
        assert_eq!((read(&cmos, SECONDS), read(&cmos, YEAR)), (0x00, 0x27));
        // And who does not look first gets no old time.
        set(62_000_000_000);
        assert_eq!(read(&cmos, MINUTES), 0x01);
    }

    #[test]
    fn it_cannot_be_set_and_other_accesses_are_nothing() {
        let cmos = Cmos::with(|| Timestamp::from_second(1_798_761_599).unwrap());
        let before = all(&cmos);
        for index in 0..=0x7f {
            cmos.write(0, &[index]);
            cmos.write(1, &[0x11]);
        }
        cmos.write(0, &[YEAR, 0x11]);
        assert_eq!(all(&cmos), before);
        let mut data = [0; 2];
        cmos.read(0, &mut data);
        assert_eq!(data, [0xff; 2]);
    }
}
