//! `--platform`

use std::str::FromStr;

use super::{OptionError, Options};
use crate::config::PlatformConfig;

const KEYS: [&str; 17] = [
    "num_pci_segments",
    "iommu_segments",
    "iommu_address_width",
    "iommufd",
    "iommufd_fd",
    "vfio_p2p_dma",
    "system_serial_number",
    "system_uuid",
    "system_manufacturer",
    "system_product_name",
    "system_version",
    "system_family",
    "system_sku_number",
    "chassis_asset_tag",
    "oem_strings",
    "tdx",
    "sev_snp",
];

impl FromStr for PlatformConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse_for("PlatformConfig", text, &KEYS, &[])?;
        let default = PlatformConfig::default();
        Ok(PlatformConfig {
            num_pci_segments: options
                .number("num_pci_segments")?
                .unwrap_or(default.num_pci_segments),
            iommu_segments: options.numbers("iommu_segments")?,
            iommu_address_width: options
                .number("iommu_address_width")?
                .unwrap_or(default.iommu_address_width),
            system_serial_number: options.text("system_serial_number"),
            system_uuid: options.text("system_uuid"),
            system_manufacturer: options.text("system_manufacturer"),
            system_product_name: options.text("system_product_name"),
            system_version: options.text("system_version"),
            system_family: options.text("system_family"),
            system_sku_number: options.text("system_sku_number"),
            chassis_asset_tag: options.text("chassis_asset_tag"),
            oem_strings: options.texts("oem_strings")?,
            iommufd: options.toggle("iommufd")?.unwrap_or(default.iommufd),
            iommufd_fd: options.descriptor("iommufd_fd")?,
            vfio_p2p_dma: options
                .toggle("vfio_p2p_dma")?
                .unwrap_or(default.vfio_p2p_dma),
            tdx: options.toggle("tdx")?.unwrap_or(default.tdx),
            sev_snp: options.toggle("sev_snp")?.unwrap_or(default.sev_snp),
        })
    }
}
