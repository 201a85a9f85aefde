//! Network devices, checked.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;

use api_client::config::{MacAddr, NetConfig};

use super::disk::limits_of;
use super::{ConfigError, PciDevice, PciParams};
use crate::virtio::net::{InterfaceParams, NetParams, Offloads, TapSource};

/// Entries of a queue.
const MAX_QUEUE_SIZE: u16 = 1 << 15;
/// IPv6 does not work with less.
const MIN_MTU: u16 = 1280;
/// Address and mask of an interface in Cloud Hypervisor up to v48, unless
/// configured.
const FORMER_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 249, 1));
const FORMER_MASK: IpAddr = IpAddr::V4(Ipv4Addr::new(255, 255, 255, 0));
/// The standard streams are no interfaces.
const LOWEST_DESCRIPTOR: RawFd = 3;

/// A network device that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetConfigError {
    /// Number of queues.
    #[error(
        "A network device cannot have {asked} queues: they come in pairs, of which there are 1 to {vcpus}, the number of vCPUs"
    )]
    Queues {
        /// What was asked for.
        asked: usize,
        /// How many pairs make sense.
        vcpus: u32,
    },
    /// Entries of a queue.
    #[error(
        "A network device's queue cannot have {0} entries: a power of two up to {MAX_QUEUE_SIZE} is possible"
    )]
    QueueSize(u16),
    /// Too small.
    #[error("An MTU of {0} is too small, {MIN_MTU} is the minimum")]
    Mtu(u16),
    /// An address of many.
    #[error("{0} is a multicast address")]
    Multicast(MacAddr),
    /// Not one per pair.
    #[error("{descriptors} descriptors are given for {pairs} pairs of queues")]
    Descriptors {
        /// Descriptors.
        descriptors: usize,
        /// Pairs.
        pairs: u16,
    },
    /// Not an interface.
    #[error("The descriptor {0} cannot be a tap interface")]
    Descriptor(RawFd),
    /// A name and descriptors, or settings that belong to a name.
    #[error("Descriptors of a tap interface exclude its name, address, mask and hardware address")]
    DescriptorsAndInterface,
    /// A mask alone, or of the other protocol.
    #[error("The mask of a network device does not fit its address")]
    Mask,
}

impl PciDevice<NetParams> {
    /// Checks a network device of a machine with so many vCPUs.
    pub fn new(config: &NetConfig, vcpus: u32) -> Result<Self, ConfigError> {
        if config.vhost_user || config.vhost_socket.is_some() {
            return Err(ConfigError::Unsupported(
                "A vhost-user network device".into(),
            ));
        }
        let pairs = match u16::try_from(config.num_queues / 2) {
            Ok(pairs)
                if config.num_queues.is_multiple_of(2)
                    && pairs > 0
                    && u32::from(pairs) <= vcpus =>
            {
                pairs
            }
            _ => {
                return Err(NetConfigError::Queues {
                    asked: config.num_queues,
                    vcpus,
                }
                .into());
            }
        };
        let size = config.queue_size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(NetConfigError::QueueSize(size).into());
        }
        if let Some(mtu) = config.mtu.filter(|&mtu| mtu < MIN_MTU) {
            return Err(NetConfigError::Mtu(mtu).into());
        }
        let mac = |mac: Option<MacAddr>| match mac {
            Some(mac) if mac.0[0] & 1 != 0 => Err(NetConfigError::Multicast(mac)),
            mac => Ok(mac.map(|mac| mac.0)),
        };
        Ok(Self {
            pci: PciParams::try_from(&config.pci_common)?,
            params: NetParams {
                tap: tap(config, pairs, mac(config.host_mac)?)?,
                mac: mac(config.mac)?,
                mtu: config.mtu,
                pairs,
                queue_size: size,
                offloads: Offloads {
                    tso: config.offload_tso,
                    ufo: config.offload_ufo,
                    csum: config.offload_csum,
                },
                limit: config.rate_limiter_config.as_ref().map(limits_of),
            },
        })
    }
}

fn tap(config: &NetConfig, pairs: u16, mac: Option<[u8; 6]>) -> Result<TapSource, NetConfigError> {
    let Some(descriptors) = &config.fds else {
        if config.mask.is_some_and(|mask| {
            config
                .ip
                .is_none_or(|address| address.is_ipv4() != mask.is_ipv4())
        }) {
            return Err(NetConfigError::Mask);
        }
        return Ok(TapSource::Interface {
            name: config.tap.clone(),
            params: InterfaceParams {
                ip: config.ip,
                mask: config.mask,
                mac,
                mtu: config.mtu,
            },
        });
    };
    // What clients send that were made from descriptions up to v48, whether
    // they mean it or not. There it has no effect with descriptors either.
    let default_address = config.ip == Some(FORMER_ADDRESS) && config.mask == Some(FORMER_MASK);
    let has_address = (config.ip.is_some() || config.mask.is_some()) && !default_address;
    if config.tap.is_some() || has_address || mac.is_some() {
        return Err(NetConfigError::DescriptorsAndInterface);
    }
    if descriptors.len() != usize::from(pairs) {
        return Err(NetConfigError::Descriptors {
            descriptors: descriptors.len(),
            pairs,
        });
    }
    match descriptors.iter().find(|&&fd| fd < LOWEST_DESCRIPTOR) {
        Some(&descriptor) => Err(NetConfigError::Descriptor(descriptor)),
        None => Ok(TapSource::Descriptors(descriptors.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut NetConfig)) -> Result<NetParams, ConfigError> {
        let mut config = NetConfig::default();
        change(&mut config);
        PciDevice::<NetParams>::new(&config, 2).map(|net| net.params)
    }

    #[test]
    fn the_default_is_one_pair_with_everything() {
        let params = check(|_| {}).unwrap();
        assert_eq!((params.pairs, params.queue_size), (1, 256));
        assert_eq!(params.offloads, Offloads::default());
    }

    #[test]
    fn each_spoiled_field_is_refused_by_its_own_error() {
        type Change = fn(&mut NetConfig);
        let queues = |asked| NetConfigError::Queues { asked, vcpus: 2 };
        let cases: [(Change, NetConfigError); 11] = [
            (|net| net.num_queues = 0, queues(0)),
            (|net| net.num_queues = 3, queues(3)),
            (|net| net.num_queues = 6, queues(6)),
            (|net| net.queue_size = 100, NetConfigError::QueueSize(100)),
            (|net| net.mtu = Some(1279), NetConfigError::Mtu(1279)),
            (
                |net| net.mac = Some(MacAddr([1, 0, 0, 0, 0, 0])),
                NetConfigError::Multicast(MacAddr([1, 0, 0, 0, 0, 0])),
            ),
            (
                |net| net.fds = Some(vec![3, 4]),
                NetConfigError::Descriptors {
                    descriptors: 2,
                    pairs: 1,
                },
            ),
            (|net| net.fds = Some(vec![2]), NetConfigError::Descriptor(2)),
            (
                |net| {
                    net.fds = Some(vec![3]);
                    net.tap = Some("tap0".into());
                },
                NetConfigError::DescriptorsAndInterface,
            ),
            (
                |net| net.mask = Some([255, 255, 255, 0].into()),
                NetConfigError::Mask,
            ),
            (
                |net| {
                    net.ip = Some([0xfd00u16, 0, 0, 0, 0, 0, 0, 1].into());
                    net.mask = Some([255, 255, 255, 0].into());
                },
                NetConfigError::Mask,
            ),
        ];
        for (change, error) in cases {
            assert_eq!(check(change), Err(ConfigError::Net(error)));
        }
    }
}
