//! Limits, as options of a device and as `--rate-limit-group`

use std::str::FromStr;

use super::{OptionError, Options, required};
use crate::config::{RateLimiterConfig, RateLimiterGroupConfig, TokenBucketConfig};

/// The options that describe limits.
pub const LIMIT_KEYS: [&str; 6] = [
    "bw_size",
    "bw_one_time_burst",
    "bw_refill_time",
    "ops_size",
    "ops_one_time_burst",
    "ops_refill_time",
];

/// Reads limits; `None` if there are none.
pub fn rate_limiter(options: &Options<'_>) -> Result<Option<RateLimiterConfig>, OptionError> {
    let limits = RateLimiterConfig {
        bandwidth: bucket(options, "bw")?,
        ops: bucket(options, "ops")?,
    };
    Ok((limits != RateLimiterConfig::default()).then_some(limits))
}

fn bucket(options: &Options<'_>, prefix: &str) -> Result<Option<TokenBucketConfig>, OptionError> {
    let size = options.size(&format!("{prefix}_size"))?;
    let one_time_burst = options.size(&format!("{prefix}_one_time_burst"))?;
    let refill_time = options.number(&format!("{prefix}_refill_time"))?;
    match (size, refill_time) {
        (Some(size), Some(refill_time)) => Ok(Some(TokenBucketConfig {
            size,
            one_time_burst,
            refill_time,
        })),
        (None, None) if one_time_burst.is_none() => Ok(None),
        _ => Err(OptionError::Combination(format!(
            "a limit needs both {prefix}_size and {prefix}_refill_time"
        ))),
    }
}

impl FromStr for RateLimiterGroupConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &[&LIMIT_KEYS[..], &["id"]].concat(), &[])?;
        Ok(RateLimiterGroupConfig {
            id: required("id", options.text("id"))?,
            rate_limiter_config: required("bw_size or ops_size", rate_limiter(&options)?)?,
        })
    }
}
