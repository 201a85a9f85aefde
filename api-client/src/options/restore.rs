//! `--restore`.

use std::str::FromStr;

use super::{OptionError, Options, required};
use crate::config::{MemoryRestoreMode, RestoreConfig, RestoredNetConfig};

const KEYS: [&str; 5] = [
    "source_url",
    "prefault",
    "memory_restore_mode",
    "net_fds",
    "resume",
];

impl FromStr for RestoreConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &KEYS, &[])?;
        let net_fds = options.named_lists("net_fds")?.map(|map| {
            map.into_iter()
                .map(|(id, fds)| RestoredNetConfig {
                    id,
                    num_fds: fds.len(),
                    fds: Some(fds),
                })
                .collect()
        });
        Ok(RestoreConfig {
            source_url: required("source_url", options.text("source_url"))?,
            prefault: options.toggle("prefault")?.unwrap_or(false),
            memory_restore_mode: options
                .choice(
                    "memory_restore_mode",
                    &[
                        ("copy", MemoryRestoreMode::Copy),
                        ("ondemand", MemoryRestoreMode::OnDemand),
                    ],
                )?
                .unwrap_or_default(),
            net_fds,
            resume: options.toggle("resume")?.unwrap_or(false),
        })
    }
}
