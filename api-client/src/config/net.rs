//! Network devices.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::{PciCommon, RateLimiterConfig};

/// A virtio network device.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// Tap interface to use or create.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Address to give the tap interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Its netmask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<IpAddr>,
    /// Hardware address of the guest's side; generated if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub mac: Option<MacAddr>,
    /// Hardware address of the host's side.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub host_mac: Option<MacAddr>,
    /// Largest packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Queues, receive and transmit counted apart.
    pub num_queues: usize,
    /// Descriptors in a queue.
    pub queue_size: u16,
    /// Whether another process serves the device.
    pub vhost_user: bool,
    /// Socket of that process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<String>,
    /// Which side listens on that socket.
    pub vhost_mode: VhostMode,
    /// Open tap file descriptors, one per queue pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fds: Option<Vec<i32>>,
    /// Limits of this device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    /// Whether TCP segmentation is offloaded.
    pub offload_tso: bool,
    /// Whether UDP fragmentation is offloaded.
    pub offload_ufo: bool,
    /// Whether checksums are offloaded.
    pub offload_csum: bool,
}

impl Default for NetConfig {
    fn default() -> Self {
        NetConfig {
            pci_common: PciCommon::default(),
            tap: None,
            ip: None,
            mask: None,
            mac: None,
            host_mac: None,
            mtu: None,
            num_queues: 2,
            queue_size: 256,
            vhost_user: false,
            vhost_socket: None,
            vhost_mode: VhostMode::default(),
            fds: None,
            rate_limiter_config: None,
            offload_tso: true,
            offload_ufo: true,
            offload_csum: true,
        }
    }
}

/// Which side of a vhost-user connection listens.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VhostMode {
    /// The back end listens.
    #[default]
    Client,
    /// The VMM listens.
    Server,
}

/// A text that is no hardware address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("\"{0}\" is no MAC address: six pairs of hexadecimal digits with colons between are")]
pub struct MacAddrError(pub String);

/// An Ethernet hardware address, written `12:34:56:78:9a:bc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let refuse = || MacAddrError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(refuse)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        match parts.next() {
            None => Ok(MacAddr(bytes)),
            Some(_) => Err(refuse()),
        }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
