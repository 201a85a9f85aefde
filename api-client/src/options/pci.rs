//! Options that every PCI device has, and `--pci-segment`.

use std::str::FromStr;

use super::{OptionError, Options, required};
use crate::config::{PciCommon, PciSegmentConfig};

/// The options that every PCI device has.
pub const PCI_KEYS: [&str; 4] = ["id", "iommu", "pci_segment", "pci_device_id"];

/// A device's own options and those of every PCI device.
pub fn with_pci(keys: &[&'static str]) -> Vec<&'static str> {
    [keys, &PCI_KEYS].concat()
}

/// Reads the options of every PCI device.
pub fn pci_common(options: &Options<'_>) -> Result<PciCommon, OptionError> {
    Ok(PciCommon {
        id: options.text("id"),
        iommu: options.toggle("iommu")?.unwrap_or(false),
        pci_segment: options.number("pci_segment")?.unwrap_or(0),
        pci_device_id: options.number("pci_device_id")?,
    })
}

impl FromStr for PciSegmentConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let keys = [
            "pci_segment",
            "mmio32_aperture_weight",
            "mmio64_aperture_weight",
        ];
        let options = Options::parse(text, &keys, &[])?;
        Ok(PciSegmentConfig {
            pci_segment: required("pci_segment", options.number("pci_segment")?)?,
            mmio32_aperture_weight: options.number("mmio32_aperture_weight")?.unwrap_or(1),
            mmio64_aperture_weight: options.number("mmio64_aperture_weight")?.unwrap_or(1),
        })
    }
}
