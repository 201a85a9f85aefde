//! `--net`

use std::str::FromStr;

use super::pci::{pci_common, with_pci};
use super::rate_limit::{LIMIT_KEYS, rate_limiter};
use super::{OptionError, Options};
use crate::config::{NetConfig, VhostMode};

const KEYS: [&str; 15] = [
    "tap",
    "ip",
    "mask",
    "mac",
    "host_mac",
    "mtu",
    "fd",
    "num_queues",
    "queue_size",
    "vhost_user",
    "socket",
    "vhost_mode",
    "offload_tso",
    "offload_ufo",
    "offload_csum",
];

const MAC_FORM: &str = "a MAC address such as 12:34:56:78:9a:bc";

impl FromStr for NetConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let keys = [&with_pci(&KEYS)[..], &LIMIT_KEYS].concat();
        let options = Options::parse_for("NetConfig", text, &keys, &[])?;
        let default = NetConfig::default();
        Ok(NetConfig {
            pci_common: pci_common(&options)?,
            tap: options.text("tap"),
            ip: options.parsed("ip", "an IP address")?,
            mask: options.parsed("mask", "a netmask")?,
            mac: options.parsed("mac", MAC_FORM)?,
            host_mac: options.parsed("host_mac", MAC_FORM)?,
            mtu: options.number("mtu")?,
            num_queues: options.number("num_queues")?.unwrap_or(default.num_queues),
            queue_size: options.number("queue_size")?.unwrap_or(default.queue_size),
            vhost_user: options.toggle("vhost_user")?.unwrap_or(default.vhost_user),
            vhost_socket: options.text("socket"),
            vhost_mode: options
                .choice(
                    "vhost_mode",
                    &[("client", VhostMode::Client), ("server", VhostMode::Server)],
                )?
                .unwrap_or_default(),
            fds: options.descriptors("fd")?,
            rate_limiter_config: rate_limiter(&options)?,
            offload_tso: options
                .toggle("offload_tso")?
                .unwrap_or(default.offload_tso),
            offload_ufo: options
                .toggle("offload_ufo")?
                .unwrap_or(default.offload_ufo),
            offload_csum: options
                .toggle("offload_csum")?
                .unwrap_or(default.offload_csum),
        })
    }
}
