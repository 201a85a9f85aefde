//! The socket device, checked.

use api_client::config::VsockConfig;

use super::{ConfigError, PciDevice, PciParams};
use crate::virtio::vsock::VsockParams;

/// Identifiers below belong to the hypervisor, to loopback and to the host.
const LOWEST_CID: u32 = 3;

impl TryFrom<&VsockConfig> for PciDevice<VsockParams> {
    type Error = ConfigError;

    fn try_from(config: &VsockConfig) -> Result<Self, ConfigError> {
        // The highest one means any.
        if !(LOWEST_CID..u32::MAX).contains(&config.cid) {
            return Err(ConfigError::Cid(config.cid));
        }
        Ok(Self {
            pci: PciParams::try_from(&config.pci_common)?,
            params: VsockParams {
                cid: config.cid,
                socket: config.socket.clone(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_with_a_meaning_are_refused() {
        for cid in [0, 1, 2, 3, u32::MAX - 1, u32::MAX] {
            let config = VsockConfig {
                cid,
                ..VsockConfig::default()
            };
            let fine = cid > 2 && cid < u32::MAX;
            assert_eq!(PciDevice::try_from(&config).is_ok(), fine, "{cid}");
        }
    }
}
