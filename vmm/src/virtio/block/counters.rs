//! Counters of a disk. Any number of threads count, any number read; they only
//! grow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::virtio::DeviceCounters;

/// One direction.
struct Direction {
    bytes: AtomicU64,
    operations: AtomicU64,
    nanoseconds: AtomicU64,
    shortest: AtomicU64,
    longest: AtomicU64,
}

impl Direction {
    const fn new() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            operations: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
            shortest: AtomicU64::new(u64::MAX),
            longest: AtomicU64::new(0),
        }
    }

    fn count(&self, bytes: u64, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.bytes.fetch_add(bytes, Relaxed);
        self.nanoseconds.fetch_add(took, Relaxed);
        self.shortest.fetch_min(took, Relaxed);
        self.longest.fetch_max(took, Relaxed);
        self.operations.fetch_add(1, Relaxed);
    }

    fn read(&self, name: &str, counters: &mut BTreeMap<String, u64>) {
        let operations = self.operations.load(Relaxed);
        let mut put = |what: &str, value| counters.insert(format!("{name}_{what}"), value);
        put("bytes", self.bytes.load(Relaxed));
        put("ops", operations);
        // Without an operation there is no latency, and none is invented.
        if let Some(average) = self.nanoseconds.load(Relaxed).checked_div(operations) {
            for (what, nanoseconds) in [
                ("min", self.shortest.load(Relaxed)),
                ("max", self.longest.load(Relaxed)),
                ("avg", average),
            ] {
                put(&format!("latency_{what}"), nanoseconds / 1000);
            }
        }
    }
}

/// Successful reads and writes; latencies in microseconds, from the moment
/// the request was taken from the queue.
pub(super) struct BlockCounters {
    read: Direction,
    write: Direction,
    /// Requests that the host failed.
    errors: AtomicU64,
}

impl BlockCounters {
    pub(super) const fn new() -> Self {
        Self {
            read: Direction::new(),
            write: Direction::new(),
            errors: AtomicU64::new(0),
        }
    }

    pub(super) fn count_read(&self, bytes: u64, took: Duration) {
        self.read.count(bytes, took);
    }

    pub(super) fn count_write(&self, bytes: u64, took: Duration) {
        self.write.count(bytes, took);
    }

    /// Counts a request that the host failed; how many there are.
    pub(super) fn count_error(&self) -> u64 {
        self.errors.fetch_add(1, Relaxed) + 1
    }
}

impl DeviceCounters for BlockCounters {
    fn read(&self) -> BTreeMap<String, u64> {
        let mut counters = BTreeMap::new();
        self.read.read("read", &mut counters);
        self.write.read("write", &mut counters);
        counters.insert("io_errors".to_owned(), self.errors.load(Relaxed));
        counters
    }

    fn only_grows(&self, name: &str) -> bool {
        !name.contains("_latency_")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_moves_its_own_counters_and_latency_comes_with_the_first_operation() {
        let counters = BlockCounters::new();
        let names = |counters: &BlockCounters| counters.read().into_keys().collect::<Vec<_>>();
        assert_eq!(
            names(&counters),
            [
                "io_errors",
                "read_bytes",
                "read_ops",
                "write_bytes",
                "write_ops"
            ]
        );
        counters.count_read(512, Duration::from_micros(10));
        counters.count_read(1024, Duration::from_micros(30));
        let expected = [
            ("io_errors", 0),
            ("read_bytes", 1536),
            ("read_latency_avg", 20),
            ("read_latency_max", 30),
            ("read_latency_min", 10),
            ("read_ops", 2),
            ("write_bytes", 0),
            ("write_ops", 0),
        ];
        let read = counters.read();
        let read: Vec<_> = read
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        assert_eq!(read, expected);
        counters.count_write(4096, Duration::from_micros(7));
        assert_eq!(counters.read()["write_latency_avg"], 7);
        assert!(counters.only_grows("read_ops") && !counters.only_grows("read_latency_avg"));
        assert_eq!(counters.read()["read_ops"], 2);
        assert_eq!((counters.count_error(), counters.count_error()), (1, 2));
        assert_eq!(counters.read()["io_errors"], 2);
    }
}
