//! Properties of the machine as a whole.

use serde::{Deserialize, Serialize};

/// Properties of the machine as a whole.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlatformConfig {
    /// PCI segments.
    pub num_pci_segments: u16,
    /// Segments behind the virtual IOMMU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu_segments: Option<Vec<u16>>,
    /// Address bits of the virtual IOMMU.
    #[serde(rename = "iommu_address_width_bits")]
    pub iommu_address_width: u8,
    /// SMBIOS: serial number of the system.
    #[serde(alias = "serial_number", skip_serializing_if = "Option::is_none")]
    pub system_serial_number: Option<String>,
    /// SMBIOS: UUID of the system.
    #[serde(alias = "uuid", skip_serializing_if = "Option::is_none")]
    pub system_uuid: Option<String>,
    /// SMBIOS: manufacturer of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_manufacturer: Option<String>,
    /// SMBIOS: product name of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_product_name: Option<String>,
    /// SMBIOS: version of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_version: Option<String>,
    /// SMBIOS: product family of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_family: Option<String>,
    /// SMBIOS: stock keeping unit of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_sku_number: Option<String>,
    /// SMBIOS: asset tag of the chassis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chassis_asset_tag: Option<String>,
    /// SMBIOS: free strings of the manufacturer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oem_strings: Option<Vec<String>>,
    /// Whether host devices are driven through iommufd.
    pub iommufd: bool,
    /// An open iommufd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommufd_fd: Option<i32>,
    /// Whether host devices may reach each other directly.
    pub vfio_p2p_dma: bool,
    /// Intel TDX.
    pub tdx: bool,
    /// AMD SEV-SNP.
    pub sev_snp: bool,
}

impl Default for PlatformConfig {
    fn default() -> Self {
        PlatformConfig {
            num_pci_segments: 1,
            iommu_segments: None,
            iommu_address_width: 64,
            system_serial_number: None,
            system_uuid: None,
            system_manufacturer: None,
            system_product_name: None,
            system_version: None,
            system_family: None,
            system_sku_number: None,
            chassis_asset_tag: None,
            oem_strings: None,
            iommufd: false,
            iommufd_fd: None,
            vfio_p2p_dma: true,
            tdx: false,
            sev_snp: false,
        }
    }
}
