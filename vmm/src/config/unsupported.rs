//! What a configuration may ask for and this program does not have. Each entry
//! goes when the feature comes.

use api_client::config::{CoreScheduling, VmConfig};

use super::ConfigError;

/// Refuses the first thing that is not available.
pub(super) fn check(config: &VmConfig) -> Result<(), ConfigError> {
    let asked = [
        (has(&config.fs), "A shared file system"),
        (has(&config.pmem), "Persistent memory"),
        (has(&config.devices), "Passing a host device through"),
        (has(&config.user_devices), "A vfio-user device"),
        (has(&config.vdpa), "A vDPA device"),
        (has(&config.generic_vhost_user), "A vhost-user device"),
        (has(&config.numa), "NUMA"),
        (has(&config.pci_segments), "A PCI segment"),
        (config.rtc.is_some(), "A real-time clock device"),
        (config.tpm.is_some(), "A TPM"),
        (config.pvpanic, "pvpanic"),
        (config.iommu, "A virtual IOMMU"),
        (
            config.memory.hotplug_size.is_some_and(|size| size > 0)
                || config.memory.hotplugged_size.is_some_and(|size| size > 0),
            "Adding memory to a running machine",
        ),
        (config.cpus.kvm_hyperv, "Hyper-V emulation"),
        (config.cpus.features.amx, "AMX"),
        (
            config.cpus.core_scheduling == CoreScheduling::Vcpu,
            "A core for each vCPU",
        ),
        (
            config.platform.as_ref().is_some_and(|platform| {
                platform.tdx || platform.sev_snp || platform.num_pci_segments > 1
            }),
            "A confidential machine or more than one PCI segment",
        ),
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
