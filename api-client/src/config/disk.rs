//! Block devices.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{PciCommon, RateLimiterConfig};

/// A virtio block device.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// Image file or block device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Whether writes are refused.
    pub readonly: bool,
    /// Whether to bypass the host's page cache.
    pub direct: bool,
    /// Request queues.
    pub num_queues: usize,
    /// Descriptors in a queue.
    pub queue_size: u16,
    /// Whether another process serves the device.
    pub vhost_user: bool,
    /// Socket of that process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<String>,
    /// Group whose limits apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit_group: Option<String>,
    /// Limits of this disk alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    /// Serial number that the guest sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Host CPUs for each queue's thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_affinity: Option<Vec<VirtQueueAffinity>>,
    /// Whether an image may name another image as its base.
    pub backing_files: bool,
    /// Whether space that the guest discards is given back.
    pub sparse: bool,
    /// Format of the image; found out by looking if absent or `Unknown`.
    pub image_type: ImageType,
    /// What an advisory lock on the image covers.
    pub lock_granularity: LockGranularity,
}

impl Default for DiskConfig {
    fn default() -> Self {
        DiskConfig {
            pci_common: PciCommon::default(),
            path: None,
            readonly: false,
            direct: false,
            num_queues: 1,
            queue_size: 128,
            vhost_user: false,
            vhost_socket: None,
            rate_limit_group: None,
            rate_limiter_config: None,
            serial: None,
            queue_affinity: None,
            backing_files: false,
            sparse: true,
            image_type: ImageType::default(),
            lock_granularity: LockGranularity::default(),
        }
    }
}

/// Host CPUs that serve one queue.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtQueueAffinity {
    /// The queue.
    pub queue_index: u16,
    /// The host's CPUs.
    pub host_cpus: Vec<usize>,
}

/// Format of a disk image.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageType {
    /// VMware's flat image.
    FlatVmdk,
    /// Microsoft's fixed-size VHD.
    FixedVhd,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// Bytes as the guest sees them.
    Raw,
    /// Microsoft's VHDX.
    Vhdx,
    /// To be found out.
    #[default]
    Unknown,
}

/// What an advisory lock on a disk image covers.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockGranularity {
    /// The bytes of the image as it is now.
    #[default]
    ByteRange,
    /// The whole file.
    Full,
}
