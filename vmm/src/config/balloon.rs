//! The memory balloon, checked.

use api_client::config::BalloonConfig;

use super::{ConfigError, PciDevice, PciParams};
use crate::virtio::balloon::BalloonParams;

impl PciDevice<BalloonParams> {
    /// Checks the balloon of a machine with so much memory.
    pub fn new(config: &BalloonConfig, memory: u64) -> Result<Self, ConfigError> {
        check_size(config.size, memory)?;
        Ok(Self {
            pci: PciParams::try_from(&config.pci_common)?,
            params: BalloonParams {
                size: config.size,
                deflate_on_oom: config.deflate_on_oom,
                free_page_reporting: config.free_page_reporting,
            },
        })
    }
}

/// Whether a balloon of `size` bytes fits into so much memory.
pub fn check_size(size: u64, memory: u64) -> Result<(), ConfigError> {
    if size >= memory {
        return Err(ConfigError::BalloonSize { size, memory });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_leaves_the_guest_some_memory() {
        let check = |size| {
            let config = BalloonConfig {
                size,
                ..BalloonConfig::default()
            };
            PciDevice::<BalloonParams>::new(&config, 4096).is_ok()
        };
        assert_eq!([check(0), check(4095), check(4096)], [true, true, false]);
    }
}
