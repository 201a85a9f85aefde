//! `--numa`

use std::str::FromStr;

use super::{OptionError, Options, required};
use crate::config::{NumaConfig, NumaDistance};

const KEYS: [&str; 6] = [
    "guest_numa_id",
    "cpus",
    "distances",
    "memory_zones",
    "pci_segments",
    "device_id",
];

impl FromStr for NumaConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &KEYS, &[])?;
        let distances = options.number_map("distances")?.map(|map| {
            map.into_iter()
                .map(|(destination, distance)| NumaDistance {
                    destination,
                    distance,
                })
                .collect()
        });
        Ok(NumaConfig {
            guest_numa_id: required("guest_numa_id", options.number("guest_numa_id")?)?,
            cpus: options.numbers("cpus")?,
            distances,
            memory_zones: options.texts("memory_zones")?,
            pci_segments: options.numbers("pci_segments")?,
            device_id: options.text("device_id"),
        })
    }
}
