//! A recording as series over time.

use crate::recording::Recording;

/// Most points that a plot of a page's width can show apart.
const MOST_BUCKETS: usize = 240;

/// Exits and time over buckets of equal length.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// Length of a bucket in seconds.
    pub bucket_seconds: f64,
    /// Buckets in every series.
    pub buckets: usize,
    /// Reasons by falling number of exits.
    pub reasons: Vec<ReasonSeries>,
    /// Seconds of vCPU time per bucket.
    pub split: TimeSplit,
}

/// One reason over time.
#[derive(Clone, Debug, PartialEq)]
pub struct ReasonSeries {
    /// The manual's number, if it has one.
    pub number: Option<u32>,
    /// The number as the manual writes it.
    pub label: String,
    /// Linux's symbol.
    pub symbol: String,
    /// The manual's name.
    pub name: String,
    /// Exits in each bucket.
    pub exits: Vec<u64>,
    /// Exits in all.
    pub total_exits: u64,
    /// Seconds in the kernel, asleep, and in user space, in all.
    pub seconds: [f64; 3],
}

/// Where the vCPUs' time went, in seconds per bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TimeSplit {
    /// Running guest code.
    pub guest: Vec<f64>,
    /// In the kernel, awake.
    pub kernel: Vec<f64>,
    /// Asleep in the kernel.
    pub asleep: Vec<f64>,
    /// Out in user space.
    pub userspace: Vec<f64>,
    /// Without a CPU, because another task had it.
    pub preempted: Vec<f64>,
}

impl TimeSplit {
    /// Time is booked when it is over, such as all of a long sleep in one
    /// bucket. What is more than a bucket can hold goes where it was spent:
    /// into those before that have room.
    fn put_back(&mut self, capacity: f64) {
        for bucket in (1..self.guest.len()).rev() {
            let mut excess = self.sum(bucket) - capacity;
            let mut earlier = bucket;
            while excess > 0.0 && earlier > 0 {
                earlier -= 1;
                let mut room = (capacity - self.sum(earlier)).max(0.0).min(excess);
                excess -= room;
                for series in [
                    &mut self.asleep,
                    &mut self.preempted,
                    &mut self.userspace,
                    &mut self.kernel,
                ] {
                    let moved = room.min(series[bucket]);
                    series[bucket] -= moved;
                    series[earlier] += moved;
                    room -= moved;
                }
                excess += room;
            }
        }
    }

    fn sum(&self, bucket: usize) -> f64 {
        [
            &self.guest,
            &self.kernel,
            &self.asleep,
            &self.userspace,
            &self.preempted,
        ]
        .iter()
        .map(|series| series[bucket])
        .sum()
    }
}

impl Timeline {
    /// The series of a recording. What happened before the first sample stands
    /// in the first bucket.
    pub fn new(recording: &Recording) -> Timeline {
        let last = recording.samples.last().map_or(0, |sample| sample.ms);
        let interval = recording.header.interval_ms.max(1);
        let wanted = (last / interval).clamp(1, MOST_BUCKETS as u64);
        let bucket_ms = last.div_ceil(wanted).max(1);
        let buckets = (last.div_ceil(bucket_ms) as usize).max(1);
        let mut timeline = Timeline {
            bucket_seconds: bucket_ms as f64 / 1000.0,
            buckets,
            reasons: Vec::new(),
            split: TimeSplit {
                guest: vec![0.0; buckets],
                kernel: vec![0.0; buckets],
                asleep: vec![0.0; buckets],
                userspace: vec![0.0; buckets],
                preempted: vec![0.0; buckets],
            },
        };
        for sample in &recording.samples {
            // A sample ends at its own time, so it belongs to the bucket in
            // which the moment before it lies.
            let bucket = (sample.ms.saturating_sub(1) / bucket_ms) as usize;
            timeline.add(bucket.min(buckets - 1), &sample.delta);
        }
        let vcpus = recording
            .samples
            .iter()
            .map(|sample| sample.delta.vcpus.len())
            .max();
        timeline
            .split
            .put_back(timeline.bucket_seconds * vcpus.unwrap_or(0) as f64);
        timeline
            .reasons
            .sort_by_key(|series| std::cmp::Reverse(series.total_exits));
        timeline
    }

    fn add(&mut self, bucket: usize, delta: &instrumentation::snapshot::ExitSnapshot) {
        let hertz = f64::from(delta.tsc_khz.max(1)) * 1000.0;
        let seconds = |ticks: u64| ticks as f64 / hertz;
        let totals = &delta.totals;
        let split = &mut self.split;
        for (series, ticks) in [
            (&mut split.guest, totals.guest_cycles),
            (&mut split.kernel, totals.cycles),
            (&mut split.asleep, totals.blocked_cycles),
            (&mut split.userspace, totals.userspace_cycles),
            (&mut split.preempted, totals.preempted_cycles),
        ] {
            series[bucket] += seconds(ticks.unwrap_or(0));
        }
        for row in delta.reasons.iter().flatten() {
            let counters = &row.counters;
            let index = match self
                .reasons
                .iter()
                .position(|series| series.number == row.number)
            {
                Some(index) => index,
                None => {
                    self.reasons.push(ReasonSeries {
                        number: row.number,
                        label: row.label(delta.isa),
                        symbol: row.symbol.to_string(),
                        name: row.name.to_string(),
                        exits: vec![0; self.buckets],
                        total_exits: 0,
                        seconds: [0.0; 3],
                    });
                    self.reasons.len() - 1
                }
            };
            let series = &mut self.reasons[index];
            series.exits[bucket] += counters.exits;
            series.total_exits += counters.exits;
            for (sum, ticks) in series.seconds.iter_mut().zip([
                counters.cycles,
                counters.blocked_cycles,
                counters.userspace_cycles,
            ]) {
                *sum += seconds(ticks);
            }
        }
    }

    /// Exits of all reasons in each bucket.
    pub fn exits(&self) -> Vec<u64> {
        (0..self.buckets)
            .map(|bucket| self.reasons.iter().map(|series| series.exits[bucket]).sum())
            .collect()
    }

    /// Seconds from the start to the end of a bucket.
    pub fn end(&self, bucket: usize) -> f64 {
        self.bucket_seconds * (bucket + 1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_sleep_stands_where_it_was_slept() {
        let mut split = TimeSplit {
            guest: vec![0.9, 0.0, 0.0, 0.5, 0.0],
            kernel: vec![0.1, 0.0, 0.0, 0.25, 0.0],
            asleep: vec![0.0, 0.0, 0.0, 2.25, 0.0],
            userspace: vec![0.0; 5],
            preempted: vec![0.0; 5],
        };
        split.put_back(1.0);
        assert_eq!(split.asleep, [0.0, 1.0, 1.0, 0.25, 0.0]);
        assert_eq!(split.guest, [0.9, 0.0, 0.0, 0.5, 0.0]);
        assert_eq!(split.kernel, [0.1, 0.0, 0.0, 0.25, 0.0]);
    }

    #[test]
    fn what_has_no_room_anywhere_stays() {
        let mut split = TimeSplit {
            guest: vec![1.0, 3.0],
            kernel: vec![0.0, 1.0],
            asleep: vec![0.0; 2],
            userspace: vec![0.0; 2],
            preempted: vec![0.0; 2],
        };
        split.put_back(1.0);
        assert_eq!(split.guest, [1.0, 3.0]);
        assert_eq!(split.kernel, [0.0, 1.0]);
    }
}
