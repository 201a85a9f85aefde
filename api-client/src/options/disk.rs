//! `--disk`

use std::str::FromStr;

use super::pci::{pci_common, with_pci};
use super::rate_limit::{LIMIT_KEYS, rate_limiter};
use super::{OptionError, Options};
use crate::config::{DiskConfig, ImageType, LockGranularity, VirtQueueAffinity};

const KEYS: [&str; 14] = [
    "path",
    "readonly",
    "direct",
    "num_queues",
    "queue_size",
    "vhost_user",
    "socket",
    "rate_limit_group",
    "queue_affinity",
    "serial",
    "backing_files",
    "sparse",
    "image_type",
    "lock_granularity",
];

impl FromStr for DiskConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let keys = [&with_pci(&KEYS)[..], &LIMIT_KEYS].concat();
        let options = Options::parse_for("DiskConfig", text, &keys, &[])?;
        let default = DiskConfig::default();
        let queue_affinity = options.number_lists("queue_affinity")?.map(|map| {
            map.into_iter()
                .map(|(queue_index, host_cpus)| VirtQueueAffinity {
                    queue_index,
                    host_cpus,
                })
                .collect()
        });
        Ok(DiskConfig {
            pci_common: pci_common(&options)?,
            path: options.text("path").map(Into::into),
            readonly: options.toggle("readonly")?.unwrap_or(default.readonly),
            direct: options.toggle("direct")?.unwrap_or(default.direct),
            num_queues: options.number("num_queues")?.unwrap_or(default.num_queues),
            queue_size: options.number("queue_size")?.unwrap_or(default.queue_size),
            vhost_user: options.toggle("vhost_user")?.unwrap_or(default.vhost_user),
            vhost_socket: options.text("socket"),
            rate_limit_group: options.text("rate_limit_group"),
            rate_limiter_config: rate_limiter(&options)?,
            serial: options.text("serial"),
            queue_affinity,
            backing_files: options
                .toggle("backing_files")?
                .unwrap_or(default.backing_files),
            sparse: options.toggle("sparse")?.unwrap_or(default.sparse),
            image_type: options
                .choice(
                    "image_type",
                    &[
                        ("raw", ImageType::Raw),
                        ("qcow2", ImageType::Qcow2),
                        ("vhd", ImageType::FixedVhd),
                        ("vhdx", ImageType::Vhdx),
                        ("vmdk", ImageType::FlatVmdk),
                    ],
                )?
                .unwrap_or_default(),
            lock_granularity: options
                .choice(
                    "lock_granularity",
                    &[
                        ("byte-range", LockGranularity::ByteRange),
                        ("full", LockGranularity::Full),
                    ],
                )?
                .unwrap_or_default(),
        })
    }
}
