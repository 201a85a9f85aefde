//! Packets and bytes, counted where they pass.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::virtio::DeviceCounters;

/// Counters of one queue pair. Its thread alone writes them. The bytes are
/// those of packets, without the header that goes before each.
#[derive(Debug, Default)]
pub(super) struct PairCounters {
    rx_bytes: AtomicU64,
    rx_frames: AtomicU64,
    tx_bytes: AtomicU64,
    tx_frames: AtomicU64,
}

impl PairCounters {
    /// A packet went to the guest.
    pub(super) fn received(&self, bytes: usize) {
        self.rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.rx_frames.fetch_add(1, Ordering::Relaxed);
    }

    /// A packet came from the guest.
    pub(super) fn transmitted(&self, bytes: usize) {
        self.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.tx_frames.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counters of a device: the sums over its pairs.
pub(super) struct NetCounters(Vec<Arc<PairCounters>>);

impl NetCounters {
    pub(super) fn new(pairs: Vec<Arc<PairCounters>>) -> Self {
        Self(pairs)
    }
}

impl DeviceCounters for NetCounters {
    fn read(&self) -> BTreeMap<String, u64> {
        type Field = fn(&PairCounters) -> &AtomicU64;
        let fields: [(&str, Field); 4] = [
            ("rx_bytes", |pair| &pair.rx_bytes),
            ("rx_frames", |pair| &pair.rx_frames),
            ("tx_bytes", |pair| &pair.tx_bytes),
            ("tx_frames", |pair| &pair.tx_frames),
        ];
        fields
            .into_iter()
            .map(|(name, field)| {
                let sum = self
                    .0
                    .iter()
                    .map(|pair| field(pair).load(Ordering::Relaxed))
                    .sum();
                (name.to_owned(), sum)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_moves_its_own_counters_and_pairs_are_summed() {
        let pairs: Vec<Arc<PairCounters>> = (0..2).map(|_| Arc::default()).collect();
        let counters = NetCounters::new(pairs.clone());
        let read = || counters.read().into_values().collect::<Vec<u64>>();
        assert_eq!(read(), [0, 0, 0, 0]);
        pairs[0].received(100);
        assert_eq!(read(), [100, 1, 0, 0]);
        pairs[1].transmitted(7);
        assert_eq!(read(), [100, 1, 7, 1]);
        pairs[1].received(1);
        assert_eq!(read(), [101, 2, 7, 1]);
    }
}
