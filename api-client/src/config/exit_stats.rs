//! What of the exit accounting a machine gets. Cloud Hypervisor has nothing
//! like it.

use serde::{Deserialize, Serialize};

/// Features of the host's exit accounting, for this machine alone.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExitStatsConfig {
    /// Whether the guest can read its own figures by CPUID.
    pub guest_leaves: bool,
    /// Whether the host keeps latency histograms.
    pub latency: bool,
}

impl Default for ExitStatsConfig {
    fn default() -> Self {
        Self {
            guest_leaves: true,
            latency: false,
        }
    }
}
