//! Network devices on the bus.

use std::fs::File;
use std::io::Read;

use api_client::config::{MacAddr, VmConfig};

use super::{DeviceError, DeviceTree};
use crate::config::PciDevice;
use crate::pci::PciAddress;
use crate::virtio::net::{Net, NetParams};

/// The id of a network device to which the configuration gave none; it gives one
/// to each.
const NET_ID: &str = "_net";

impl DeviceTree {
    /// Adds a network device; says what it is called and where it is.
    pub fn add_net(
        &mut self,
        net: &PciDevice<NetParams>,
    ) -> Result<(String, PciAddress), DeviceError> {
        self.add(&net.pci, NET_ID, |id, events| {
            let net = Net::new(id, &net.params, &events)
                .map_err(|source| DeviceError::Net(id.to_owned(), source))?;
            Ok(Box::new(net))
        })
    }
}

/// Gives every network device without a hardware address one that it keeps,
/// so that the guest finds the same after every reboot.
pub(in crate::vm) fn assign_macs(config: &mut VmConfig) -> Result<(), DeviceError> {
    for net in config.net.iter_mut().flatten() {
        if net.mac.is_none() {
            net.mac = Some(MacAddr(random_mac().map_err(DeviceError::Mac)?));
        }
    }
    Ok(())
}

/// A random hardware address that belongs to no vendor.
fn random_mac() -> std::io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut mac)?;
    // Locally administered, and of one station.
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_given_once_and_kept() {
        let mut config = VmConfig {
            net: Some(vec![Default::default(), Default::default()]),
            ..VmConfig::default()
        };
        assign_macs(&mut config).unwrap();
        let first = config.clone();
        let net = first.net.as_ref().unwrap();
        assert!(net[0].mac.is_some() && net[0].mac != net[1].mac);
        assign_macs(&mut config).unwrap();
        assert_eq!(config, first);
    }

    #[test]
    fn random_macs_differ_and_belong_to_one_station() {
        let (first, second) = (random_mac().unwrap(), random_mac().unwrap());
        assert_ne!(first, second);
        assert_eq!((first[0] & 3, second[0] & 3), (2, 2));
    }
}
