//! Finds the bursts in a series of exits: the phases that a reader asks about.

use super::timeline::Timeline;

/// Consecutive buckets. A burst is a phase whose own rate, from its first bucket to
/// its last, is above [`threshold`]; so every burst is faster than every calm phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// First bucket.
    pub first: usize,
    /// One past the last bucket.
    pub end: usize,
    /// Whether their rate is above [`threshold`].
    pub burst: bool,
    /// Exits in them.
    pub exits: u64,
    /// The reasons with the most exits in them, most first, with their counts.
    pub top: Vec<(String, u64)>,
}

/// Most phases that a table is readable with; the shortest ones are merged into
/// their neighbours until no more are left.
const MOST_PHASES: usize = 12;
const TOP_REASONS: usize = 3;
/// A bucket is looked at together with this part of the timeline on either side.
const SMOOTHNESS: usize = 80;

/// The rate, in exits a bucket, above which a bucket belongs to a burst: twice
/// the mean. A steady VM never passes it.
pub fn threshold(exits: &[u64]) -> u64 {
    let sum: u64 = exits.iter().sum();
    (2 * sum).div_ceil(exits.len().max(1) as u64)
}

/// Each bucket's share of what happens around it, so that what comes every second
/// is a rate and not a burst each time.
fn smooth(exits: &[u64]) -> Vec<u64> {
    let reach = exits.len() / SMOOTHNESS;
    (0..exits.len())
        .map(|bucket| {
            let last = (bucket + reach).min(exits.len() - 1);
            let around = &exits[bucket.saturating_sub(reach)..=last];
            around.iter().sum::<u64>() / around.len() as u64
        })
        .collect()
}

/// The phases of a timeline, in order, without gaps.
pub fn phases(timeline: &Timeline) -> Vec<Phase> {
    let exits = smooth(&timeline.exits());
    let limit = threshold(&exits);
    let mut spans: Vec<(usize, usize, bool)> = Vec::new();
    for (bucket, &count) in exits.iter().enumerate() {
        let burst = count > limit;
        match spans.last_mut() {
            Some((_, end, same)) if *same == burst => *end = bucket + 1,
            _ => spans.push((bucket, bucket + 1, burst)),
        }
    }
    while spans.len() > MOST_PHASES {
        // Calm spans between bursts go first: merging two bursts loses less
        // than losing one.
        let Some(index) = (1..spans.len() - 1).min_by_key(|&i| {
            let (first, end, burst) = spans[i];
            (burst, end - first)
        }) else {
            break;
        };
        let end = spans[index + 1].1;
        spans[index - 1].1 = end;
        spans.drain(index..=index + 1);
    }
    // The smoothed rate found where phases begin and end. What they are is judged
    // by what happened in them; neighbours that are the same are one.
    let exits = timeline.exits();
    let mut judged: Vec<(usize, usize, bool)> = Vec::new();
    for (first, end, _) in spans {
        let burst = is_burst(&exits, first, end);
        match judged.last_mut() {
            Some((_, last, same)) if *same == burst => *last = end,
            _ => judged.push((first, end, burst)),
        }
    }
    judged
        .into_iter()
        .map(|(first, end, burst)| phase(timeline, first, end, burst))
        .collect()
}

/// Whether the rate of a phase is more than twice the mean of all, exactly.
fn is_burst(exits: &[u64], first: usize, end: usize) -> bool {
    let sum = |exits: &[u64]| exits.iter().map(|&count| u128::from(count)).sum::<u128>();
    sum(&exits[first..end]) * exits.len() as u128 > 2 * sum(exits) * (end - first) as u128
}

fn phase(timeline: &Timeline, first: usize, end: usize, burst: bool) -> Phase {
    let mut top: Vec<(String, u64)> = timeline
        .reasons
        .iter()
        .map(|series| (series.symbol.clone(), series.exits[first..end].iter().sum()))
        .filter(|(_, count)| *count > 0)
        .collect();
    let exits = top.iter().map(|(_, count)| count).sum();
    top.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    top.truncate(TOP_REASONS);
    Phase {
        first,
        end,
        burst,
        exits,
        top,
    }
}

#[cfg(test)]
mod tests {
    use super::super::timeline::{ReasonSeries, TimeSplit};
    use super::*;

    fn timeline(exits: &[u64]) -> Timeline {
        Timeline {
            bucket_seconds: 1.0,
            buckets: exits.len(),
            reasons: vec![ReasonSeries {
                number: Some(10),
                label: "10".into(),
                symbol: "CPUID".into(),
                name: "CPUID".into(),
                exits: exits.to_vec(),
                total_exits: exits.iter().sum(),
                seconds: [0.0; 3],
            }],
            split: TimeSplit::default(),
        }
    }

    fn spans(exits: &[u64]) -> Vec<(usize, usize, bool)> {
        phases(&timeline(exits))
            .iter()
            .map(|phase| (phase.first, phase.end, phase.burst))
            .collect()
    }

    #[test]
    fn a_steady_rate_is_one_calm_phase() {
        assert_eq!(spans(&[5, 5, 6, 5]), [(0, 4, false)]);
        assert_eq!(spans(&[0, 0]), [(0, 2, false)]);
    }

    #[test]
    fn a_burst_stands_apart_from_what_is_around_it() {
        assert_eq!(
            spans(&[1, 1, 90, 80, 1, 1, 1, 1]),
            [(0, 2, false), (2, 4, true), (4, 8, false)]
        );
    }

    #[test]
    fn what_comes_every_second_is_no_burst() {
        // A boot, then a machine that wakes up now and then.
        let exits: Vec<u64> = (0..240)
            .map(|n| match n {
                10..30 => 500,
                _ if n % 3 == 0 => 200,
                _ => 5,
            })
            .collect();
        let found = spans(&exits);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[1].2 && found[1].1 - found[1].0 >= 18, "{found:?}");
    }

    proptest::proptest! {
        #[test]
        fn a_burst_is_what_the_page_says(exits in proptest::collection::vec(
            proptest::prop_oneof![0..10u64, 0..100_000u64], 1..240)) {
            let mean = exits.iter().sum::<u64>() as f64 / exits.len() as f64;
            let found = phases(&timeline(&exits));
            for phase in &found {
                let rate = phase.exits as f64 / (phase.end - phase.first) as f64;
                let burst = rate > 2.0 * mean;
                // Equal but for rounding is either.
                let close = (rate - 2.0 * mean).abs() <= 1e-9 * rate;
                proptest::prop_assert!(phase.burst == burst || close, "{phase:?}, mean {mean}");
            }
            proptest::prop_assert!(found.windows(2).all(|pair| pair[0].end == pair[1].first
                && pair[0].burst != pair[1].burst));
            proptest::prop_assert_eq!(found.last().unwrap().end, exits.len());
        }
    }

    #[test]
    fn phases_cover_the_timeline_however_many_bursts_there_are() {
        let exits: Vec<u64> = (0..90).map(|n| if n % 3 == 0 { 100 } else { 0 }).collect();
        let found = phases(&timeline(&exits));
        assert!(found.len() <= MOST_PHASES);
        assert_eq!(found[0].first, 0);
        assert!(found.windows(2).all(|pair| pair[0].end == pair[1].first));
        assert_eq!(found.last().map(|phase| phase.end), Some(90));
        assert_eq!(found.iter().map(|phase| phase.exits).sum::<u64>(), 3000);
    }
}
