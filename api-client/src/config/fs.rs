//! Shared file systems.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::PciCommon;

/// A virtio file system served by another process.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// Name by which the guest mounts it.
    pub tag: String,
    /// Socket of the process that serves it.
    pub socket: PathBuf,
    /// Request queues.
    #[serde(default = "one_queue")]
    pub num_queues: usize,
    /// Descriptors in a queue.
    #[serde(default = "fs_queue_size")]
    pub queue_size: u16,
}

impl Default for FsConfig {
    fn default() -> Self {
        FsConfig {
            pci_common: PciCommon::default(),
            tag: String::new(),
            socket: PathBuf::new(),
            num_queues: one_queue(),
            queue_size: fs_queue_size(),
        }
    }
}

fn one_queue() -> usize {
    1
}

fn fs_queue_size() -> u16 {
    1024
}
