//! Disks, checked.

use std::collections::BTreeMap;
use std::time::Duration;

use api_client::config::{
    DiskConfig, ImageType, LockGranularity, RateLimiterConfig, RateLimiterGroupConfig,
    TokenBucketConfig,
};

use super::{ConfigError, PciDevice, PciParams, check_id};
use crate::virtio::block::image::{ImageFormat, ImageOptions, LockRange};
use crate::virtio::block::{DiskLimit, DiskParams};
use crate::virtio::rate_limit::{BucketParams, LimitParams};

/// A queue holds a request's header, data and status at least.
const MIN_QUEUE_SIZE: u16 = 4;
/// The most that a queue can have (virtio 1.3, 2.7).
const MAX_QUEUE_SIZE: u16 = 32768;
/// Bytes of a serial number that the guest can see (virtio 1.3, 5.2.6).
const MAX_SERIAL: usize = 20;

impl PciDevice<DiskParams> {
    /// Checks a disk of a machine with so many vCPUs and these groups.
    pub fn new(
        config: &DiskConfig,
        vcpus: u32,
        groups: &BTreeMap<String, LimitParams>,
    ) -> Result<Self, ConfigError> {
        if config.vhost_user || config.vhost_socket.is_some() {
            return Err(ConfigError::Unsupported("A vhost-user disk".into()));
        }
        let path = config.path.clone().ok_or(ConfigError::DiskPath)?;
        // None are given means one, as a disk without any could do nothing.
        let queues = match u16::try_from(config.num_queues.max(1)) {
            Ok(queues) if u32::from(queues) <= vcpus => queues,
            _ => {
                return Err(ConfigError::DiskQueues {
                    asked: config.num_queues,
                    vcpus,
                });
            }
        };
        let size = config.queue_size;
        if !size.is_power_of_two() || !(MIN_QUEUE_SIZE..=MAX_QUEUE_SIZE).contains(&size) {
            return Err(ConfigError::DiskQueueSize(size));
        }
        if let Some(serial) = &config.serial
            && serial.len() > MAX_SERIAL
        {
            return Err(ConfigError::DiskSerial(serial.clone()));
        }
        let format = match config.image_type {
            ImageType::Raw => ImageFormat::Raw,
            ImageType::Qcow2 => ImageFormat::Qcow2,
            ImageType::Unknown => ImageFormat::Detect,
            other => {
                return Err(ConfigError::Unsupported(format!(
                    "The image type {other:?}"
                )));
            }
        };
        Ok(Self {
            pci: PciParams::try_from(&config.pci_common)?,
            params: DiskParams {
                image: ImageOptions {
                    path,
                    format,
                    read_only: config.readonly,
                    direct: config.direct,
                    sparse: config.sparse,
                    backing_files: config.backing_files,
                    lock: match config.lock_granularity {
                        LockGranularity::ByteRange => LockRange::Bytes,
                        LockGranularity::Full => LockRange::Full,
                    },
                },
                queues,
                queue_size: size,
                serial: config.serial.clone(),
                limit: limit(config, groups)?,
                affinity: affinity(config, queues)?,
                io_uring: true,
            },
        })
    }
}

fn limit(
    config: &DiskConfig,
    groups: &BTreeMap<String, LimitParams>,
) -> Result<Option<DiskLimit>, ConfigError> {
    match (&config.rate_limit_group, &config.rate_limiter_config) {
        (Some(_), Some(_)) => Err(ConfigError::TwoLimits),
        (Some(group), None) if groups.contains_key(group) => {
            Ok(Some(DiskLimit::Group(group.clone())))
        }
        (Some(group), None) => Err(ConfigError::NoSuchGroup(group.clone())),
        (None, limits) => Ok(limits
            .as_ref()
            .map(|limits| DiskLimit::Own(limits_of(limits)))),
    }
}

fn affinity(config: &DiskConfig, queues: u16) -> Result<Vec<Vec<usize>>, ConfigError> {
    let mut affinity = vec![Vec::new(); usize::from(queues)];
    for queue in config.queue_affinity.iter().flatten() {
        let index = usize::from(queue.queue_index);
        match affinity.get_mut(index) {
            Some(cpus) => cpus.clone_from(&queue.host_cpus),
            None => return Err(ConfigError::NoSuchQueue(queue.queue_index)),
        }
    }
    Ok(affinity)
}

/// The limits that several disks share, by name.
pub(super) fn groups(
    configs: Option<&Vec<RateLimiterGroupConfig>>,
) -> Result<BTreeMap<String, LimitParams>, ConfigError> {
    let mut groups = BTreeMap::new();
    for config in configs.into_iter().flatten() {
        check_id(&config.id)?;
        let limits = limits_of(&config.rate_limiter_config);
        if groups.insert(config.id.clone(), limits).is_some() {
            return Err(ConfigError::SameGroup(config.id.clone()));
        }
    }
    Ok(groups)
}

/// Limits as the devices know them.
pub(super) fn limits_of(config: &RateLimiterConfig) -> LimitParams {
    let bucket = |bucket: TokenBucketConfig| BucketParams {
        size: bucket.size,
        one_time_burst: bucket.one_time_burst.unwrap_or(0),
        refill_time: Duration::from_millis(bucket.refill_time),
    };
    LimitParams {
        bandwidth: config.bandwidth.map(bucket),
        operations: config.ops.map(bucket),
    }
}
