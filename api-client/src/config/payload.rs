//! What the virtual machine boots.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What to boot: a kernel with its command line and initial file system, or
/// firmware that finds an operating system by itself.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PayloadConfig {
    /// Firmware image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// Linux kernel, a bzImage or an ELF image with a PVH entry point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Kernel command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Initial file system of the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
}
