//! What a configuration may ask for and this program does not have, by the
//! name of the field. Each entry goes when the feature comes.

use api_client::config::{CoreScheduling, PlatformConfig, VmConfig};

use super::ConfigError;

/// Refuses the first thing that is not available.
pub(super) fn check(config: &VmConfig) -> Result<(), ConfigError> {
    let PlatformConfig {
        num_pci_segments,
        iommu_segments,
        iommu_address_width,
        iommufd,
        iommufd_fd,
        vfio_p2p_dma,
        tdx,
        sev_snp,
        ..
    } = config.platform.clone().unwrap_or_default();
    let hotplug = |size: Option<u64>| size.is_some_and(|size| size > 0);
    let memory = &config.memory;
    let asked = [
        (has(&config.fs), "fs (shared file systems)"),
        (has(&config.pmem), "pmem (persistent memory)"),
        (
            has(&config.devices),
            "devices (passing host devices through)",
        ),
        (
            has(&config.user_devices),
            "user_devices (vfio-user devices)",
        ),
        (has(&config.vdpa), "vdpa (vDPA devices)"),
        (
            has(&config.generic_vhost_user),
            "generic_vhost_user (vhost-user devices)",
        ),
        (has(&config.numa), "numa (NUMA nodes)"),
        (
            has(&config.pci_segments),
            "pci_segments (weights of PCI segments)",
        ),
        (config.rtc.is_some(), "rtc (a real-time clock device)"),
        (config.tpm.is_some(), "tpm (a TPM)"),
        (config.iommu, "iommu (a virtual IOMMU)"),
        (
            hotplug(memory.hotplug_size),
            "memory.hotplug_size (adding memory to a running VM)",
        ),
        (
            hotplug(memory.hotplugged_size),
            "memory.hotplugged_size (adding memory to a running VM)",
        ),
        (
            config.cpus.kvm_hyperv,
            "cpus.kvm_hyperv (Hyper-V emulation)",
        ),
        (config.cpus.features.amx, "cpus.features.amx (AMX)"),
        (
            config.cpus.core_scheduling == CoreScheduling::Vcpu,
            "cpus.core_scheduling=Vcpu",
        ),
        (
            num_pci_segments != 1,
            "platform.num_pci_segments other than 1 (more than one PCI segment)",
        ),
        (
            has(&iommu_segments),
            "platform.iommu_segments (a virtual IOMMU)",
        ),
        (
            iommu_address_width != PlatformConfig::default().iommu_address_width,
            "platform.iommu_address_width_bits (a virtual IOMMU)",
        ),
        (
            iommufd || iommufd_fd.is_some(),
            "platform.iommufd (passing host devices through)",
        ),
        (
            !vfio_p2p_dma,
            "platform.vfio_p2p_dma (passing host devices through)",
        ),
        (tdx, "platform.tdx (confidential VMs)"),
        (sev_snp, "platform.sev_snp (confidential VMs)"),
    ];
    match asked.into_iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(ConfigError::Unsupported(what.into())),
        None => Ok(()),
    }
}

/// An empty list asks for nothing.
fn has<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}
