//! What every PCI device configuration carries.

use serde::{Deserialize, Serialize};

/// Identity and place of a PCI device; flattened into each device's object.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PciCommon {
    /// Identifier by which the API names the device; generated if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether the device sits behind the virtual IOMMU.
    pub iommu: bool,
    /// PCI segment of the device.
    pub pci_segment: u16,
    /// Slot on the segment; the next free one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
}

/// How a PCI segment shares the MMIO apertures with the other segments.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciSegmentConfig {
    /// Number of the segment.
    #[serde(default)]
    pub pci_segment: u16,
    /// Weight of its share of the 32-bit aperture.
    #[serde(default = "one")]
    pub mmio32_aperture_weight: u32,
    /// Weight of its share of the 64-bit aperture.
    #[serde(default = "one")]
    pub mmio64_aperture_weight: u32,
}

impl Default for PciSegmentConfig {
    fn default() -> Self {
        PciSegmentConfig {
            pci_segment: 0,
            mmio32_aperture_weight: one(),
            mmio64_aperture_weight: one(),
        }
    }
}

fn one() -> u32 {
    1
}
