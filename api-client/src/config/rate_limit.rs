//! Limits of bandwidth and operations.

use serde::{Deserialize, Serialize};

/// A bucket that holds `size` tokens and refills in `refill_time`.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucketConfig {
    /// Tokens when full: bytes or operations.
    pub size: u64,
    /// Tokens granted once, on top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds from empty to full.
    pub refill_time: u64,
}

/// Limits of one device.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RateLimiterConfig {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucketConfig>,
    /// Operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucketConfig>,
}

/// A limit that several disks share.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiterGroupConfig {
    /// Name by which disks refer to the group.
    pub id: String,
    /// The shared limits.
    #[serde(default)]
    pub rate_limiter_config: RateLimiterConfig,
}
