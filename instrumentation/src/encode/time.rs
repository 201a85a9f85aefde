//! Times for people: seconds with the prefix that suits a column, or ticks.

use alloc::format;
use alloc::string::String;

use super::columns::grouped;

/// The unit of one column. All its cells have the same, so that they compare at
/// a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeUnit {
    name: &'static str,
    /// Picoseconds in one tenth of the unit; `None` for ticks.
    tenth: Option<u128>,
    /// TSC ticks per millisecond.
    tsc_khz: u32,
}

const NANOSECOND: u128 = 1_000;

impl TimeUnit {
    /// The unit for a column of ticks the largest of which is `most`: one in
    /// which that has four to six digits. Ticks themselves if they are wanted or
    /// the clock's rate is not known.
    pub fn for_column(most: u64, tsc_khz: u32, ticks: bool) -> TimeUnit {
        let raw = TimeUnit {
            name: "ticks",
            tenth: None,
            tsc_khz,
        };
        if ticks || tsc_khz == 0 {
            return raw;
        }
        let (name, unit) = match raw.picoseconds(most) / NANOSECOND {
            0..1_000_000 => ("ns", NANOSECOND),
            1_000_000..1_000_000_000 => ("µs", 1_000 * NANOSECOND),
            1_000_000_000..1_000_000_000_000 => ("ms", 1_000_000 * NANOSECOND),
            _ => ("s", 1_000_000_000 * NANOSECOND),
        };
        TimeUnit {
            name,
            tenth: Some(unit / 10),
            tsc_khz,
        }
    }

    /// The heading of a column in this unit.
    pub fn heading(self, what: &str) -> String {
        format!("{what} ({})", self.name)
    }

    /// A cell of the column.
    pub fn cell(self, ticks: u64) -> String {
        let Some(tenth) = self.tenth else {
            return grouped(ticks);
        };
        let tenths = (self.picoseconds(ticks) + tenth / 2) / tenth;
        let whole = grouped(u64::try_from(tenths / 10).unwrap_or(u64::MAX));
        match self.name {
            "ns" => whole,
            _ => format!("{whole}.{}", tenths % 10),
        }
    }

    /// A cell that says its unit itself.
    pub fn with_name(self, ticks: u64) -> String {
        format!("{} {}", self.cell(ticks), self.name)
    }

    /// An average as a cell; a dash where there is nothing to take it of.
    pub fn average(self, sum: u64, count: u64) -> String {
        sum.checked_div(count)
            .map_or("-".into(), |average| self.cell(average))
    }

    fn picoseconds(self, ticks: u64) -> u128 {
        u128::from(ticks) * 1_000_000_000 / u128::from(self.tsc_khz.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_has_the_unit_that_suits_its_largest_cell() {
        for (most, heading, small, large) in [
            (1_999_999, "T (ns)", "1", "999,999"),
            (2_000_000, "T (µs)", "0.0", "1,000.0"),
            (3_000_000_000, "T (ms)", "0.0", "1,500.0"),
            (4_000_000_000_000, "T (s)", "0.0", "2,000.0"),
        ] {
            let unit = TimeUnit::for_column(most, 2_000_000, false);
            assert_eq!(unit.heading("T"), heading);
            assert_eq!(
                (unit.cell(2).as_str(), unit.cell(most).as_str()),
                (small, large)
            );
        }
    }

    #[test]
    fn ticks_are_shown_on_request_or_where_their_rate_is_not_known() {
        for unit in [
            TimeUnit::for_column(5_000, 2_000_000, true),
            TimeUnit::for_column(5_000, 0, false),
        ] {
            assert_eq!(unit.heading("Kernel"), "Kernel (ticks)");
            assert_eq!(unit.cell(5_000), "5,000");
            assert_eq!(unit.average(10, 4), "2");
            assert_eq!(unit.average(10, 0), "-");
        }
    }
}
