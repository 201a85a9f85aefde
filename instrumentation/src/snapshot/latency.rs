//! Histograms of how long exits took, as the kernel keeps them for VMs that have
//! them on.

use serde::{Deserialize, Serialize};

use super::DeltaError;
use super::build::nanoseconds;

/// The histograms of a VM, all its vCPUs summed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Whether exits are recorded now.
    pub on: bool,
    /// By reason; those without an exit are left out.
    pub reasons: Vec<ReasonLatency>,
}

/// How long exits of one reason took in the kernel, from exit to entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonLatency {
    /// The manual's number; null for exits that it has no number for.
    pub number: Option<u32>,
    /// Linux's symbol.
    pub symbol: String,
    /// Nanoseconds that the shortest took at least.
    pub min_ns: u64,
    /// Nanoseconds that the longest took less than; null if there is no bound.
    pub max_ns: Option<u64>,
    /// Exits by how long they took, the shortest first; empty ones are left out.
    pub buckets: Vec<LatencyBucket>,
}

/// Exits that took about as long as each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyBucket {
    /// TSC ticks that they took less than, a power of two, and at least half of it;
    /// null for those that took longer than the kernel tells apart.
    pub below_ticks: Option<u64>,
    /// The same in nanoseconds.
    pub below_ns: Option<u64>,
    /// Exits.
    pub exits: u64,
}

/// Ticks from which on the kernel tells no more apart.
const LONGEST: u64 = 1 << 38;

impl ReasonLatency {
    fn new(
        number: Option<u32>,
        symbol: String,
        tsc_khz: u32,
        buckets: Vec<LatencyBucket>,
    ) -> ReasonLatency {
        let mut row = ReasonLatency {
            number,
            symbol,
            min_ns: 0,
            max_ns: buckets.last().and_then(|last| last.below_ns),
            buckets,
        };
        row.min_ns = nanoseconds(row.min_ticks(), tsc_khz);
        row
    }

    /// Ticks that the shortest took at least.
    pub fn min_ticks(&self) -> u64 {
        self.buckets.first().map_or(0, |first| {
            first.below_ticks.map_or(LONGEST, |below| below / 2)
        })
    }

    /// Ticks that the longest took less than, if there is a bound.
    pub fn max_ticks(&self) -> Option<u64> {
        self.buckets.last().and_then(|last| last.below_ticks)
    }

    /// Exits in all buckets.
    pub fn exits(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.exits).sum()
    }

    /// Nanoseconds that so many percent of the exits took less than; `None` if that
    /// has no bound.
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let wanted = u128::from(self.exits()) * u128::from(percent);
        let mut sum = 0u128;
        for bucket in &self.buckets {
            sum += u128::from(bucket.exits) * 100;
            if sum >= wanted {
                return bucket.below_ns;
            }
        }
        None
    }
}

impl Latency {
    /// Reads the table that the kernel writes in debugfs: a line `latency on` or
    /// `off`, then one a reason: number, symbol, and `<bound:exits` for each bucket
    /// in use. Nothing if it is not such a table.
    pub fn parse(text: &str, tsc_khz: u32) -> Option<Latency> {
        let mut lines = text.lines();
        let on = match lines.next()?.strip_prefix("latency ")? {
            "on" => true,
            "off" => false,
            _ => return None,
        };
        let reasons = lines
            .map(|line| parse_reason(line, tsc_khz))
            .collect::<Option<Vec<_>>>()?;
        Some(Latency { on, reasons })
    }

    /// Only this reason.
    pub(super) fn narrow(&mut self, number: u32) {
        self.reasons.retain(|row| row.number == Some(number));
    }

    /// What was recorded since `earlier`.
    pub(super) fn since(&self, earlier: &Latency, tsc_khz: u32) -> Result<Latency, DeltaError> {
        let mut reasons = Vec::new();
        for row in &self.reasons {
            let old = earlier.reasons.iter().find(|old| old.number == row.number);
            let before = |below: Option<u64>| {
                old.iter()
                    .flat_map(|old| &old.buckets)
                    .find(|bucket| bucket.below_ticks == below)
                    .map_or(0, |bucket| bucket.exits)
            };
            let buckets: Vec<LatencyBucket> = row
                .buckets
                .iter()
                .map(|bucket| LatencyBucket {
                    exits: bucket.exits.saturating_sub(before(bucket.below_ticks)),
                    ..*bucket
                })
                .filter(|bucket| bucket.exits > 0)
                .collect();
            if !buckets.is_empty() {
                let symbol = row.symbol.clone();
                reasons.push(ReasonLatency::new(row.number, symbol, tsc_khz, buckets));
            }
        }
        Ok(Latency {
            on: self.on,
            reasons,
        })
    }

    /// Adds what another interval recorded.
    pub fn add(&mut self, other: &Latency, tsc_khz: u32) {
        self.on |= other.on;
        for row in &other.reasons {
            let place = self.reasons.iter().position(|own| own.number == row.number);
            let mut buckets = match place {
                Some(place) => self.reasons.remove(place).buckets,
                None => Vec::new(),
            };
            for bucket in &row.buckets {
                match buckets
                    .iter_mut()
                    .find(|own| own.below_ticks == bucket.below_ticks)
                {
                    Some(own) => own.exits += bucket.exits,
                    None => buckets.push(*bucket),
                }
            }
            buckets.sort_by_key(|bucket| bucket.below_ticks.unwrap_or(u64::MAX));
            let symbol = row.symbol.clone();
            self.reasons
                .push(ReasonLatency::new(row.number, symbol, tsc_khz, buckets));
        }
    }
}

fn parse_reason(line: &str, tsc_khz: u32) -> Option<ReasonLatency> {
    let mut words = line.split_whitespace();
    let number = match words.next()? {
        "-" => None,
        number => Some(match number.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok()?,
            None => number.parse().ok()?,
        }),
    };
    let symbol = words.next()?.to_owned();
    let buckets = words
        .map(|word| {
            let (bound, exits) = word.rsplit_once(':')?;
            let below_ticks = match bound.strip_prefix('<') {
                Some(below) => Some(below.parse().ok()?),
                None if bound == "more" => None,
                None => return None,
            };
            Some(LatencyBucket {
                below_ticks,
                below_ns: below_ticks.map(|ticks| nanoseconds(ticks, tsc_khz)),
                exits: exits.parse().ok()?,
            })
        })
        .collect::<Option<Vec<_>>>()?;
    Some(ReasonLatency::new(number, symbol, tsc_khz, buckets))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "latency on\n0xa CPUID <1024:3 <2048:95 <65536:2\n0x1f MSR_READ <1:1 more:1\n\
                         - OTHER <4096:1\n";

    #[test]
    fn the_kernels_table_is_read_with_bounds_in_nanoseconds() {
        let latency = Latency::parse(TABLE, 2_000_000).unwrap();
        assert!(latency.on);
        let [cpuid, msr, other] = &latency.reasons[..] else {
            panic!("{latency:?}")
        };
        assert_eq!((cpuid.number, cpuid.exits()), (Some(10), 100));
        assert_eq!((cpuid.min_ns, cpuid.max_ns), (256, Some(32_768)));
        assert_eq!(cpuid.percentile(50), Some(1024));
        assert_eq!(cpuid.percentile(98), Some(1024));
        assert_eq!(cpuid.percentile(99), Some(32_768));
        assert_eq!((msr.min_ns, msr.max_ns), (0, None));
        assert_eq!((other.number, other.symbol.as_str()), (None, "OTHER"));
        let off = Latency::parse("latency off\n", 1).unwrap();
        assert!(!off.on && off.reasons.is_empty());
    }

    #[test]
    fn what_is_no_such_table_is_none() {
        for text in [
            "",
            "latency maybe\n",
            "latency on\nCPUID\n",
            "latency on\n0xa CPUID 5\n",
            "latency on\n0xa CPUID <x:1\n",
        ] {
            assert_eq!(Latency::parse(text, 1), None, "{text:?}");
        }
    }

    #[test]
    fn a_difference_and_a_sum_undo_each_other() {
        let later = Latency::parse(TABLE, 2_000_000).unwrap();
        let earlier = Latency::parse("latency on\n0xa CPUID <2048:90 <65536:2\n", 2_000_000);
        let earlier = earlier.unwrap();
        let delta = later.since(&earlier, 2_000_000).unwrap();
        assert_eq!(delta.reasons[0].exits(), 8);
        assert_eq!(delta.reasons[0].max_ns, Some(1024));
        let mut sum = earlier;
        sum.add(&delta, 2_000_000);
        assert_eq!(sum.reasons, later.reasons);
    }
}
