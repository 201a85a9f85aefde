//! Names for devices that the client did not name, given before anything is
//! built, so that a machine's devices are called the same after every reboot.

use std::collections::BTreeSet;

use api_client::config::{PciCommon, VmConfig};

const DISK: &str = "_disk";
const NET: &str = "_net";
const VSOCK: &str = "_vsock";

/// Names every device that may have any number of siblings. `next` counts all
/// kinds and only grows. Names that the configuration has or that are `in_use`
/// otherwise are left out.
pub fn name_devices(config: &mut VmConfig, next: &mut u32, in_use: impl Fn(&str) -> bool) {
    let taken = names(config);
    let mut name = |pci: &mut PciCommon, prefix: &str| {
        while pci.id.is_none() {
            let name = format!("{prefix}{next}");
            *next = next.wrapping_add(1);
            if !taken.contains(&name) && !in_use(&name) {
                pci.id = Some(name);
            }
        }
    };
    for disk in config.disks.iter_mut().flatten() {
        name(&mut disk.pci_common, DISK);
    }
    for net in config.net.iter_mut().flatten() {
        name(&mut net.pci_common, NET);
    }
    if let Some(vsock) = &mut config.vsock {
        name(&mut vsock.pci_common, VSOCK);
    }
}

/// The names that devices have.
fn names(config: &VmConfig) -> BTreeSet<String> {
    let disks = config.disks.iter().flatten().map(|disk| &disk.pci_common);
    let nets = config.net.iter().flatten().map(|net| &net.pci_common);
    let vsock = config.vsock.iter().map(|vsock| &vsock.pci_common);
    disks
        .chain(nets)
        .chain(vsock)
        .filter_map(|pci| pci.id.clone())
        .collect()
}

/// Forgets the device of this name; false if there is none.
pub fn forget_device(config: &mut VmConfig, id: &str) -> bool {
    let before = names(config).len();
    let stays = |pci: &PciCommon| pci.id.as_deref() != Some(id);
    if let Some(disks) = &mut config.disks {
        disks.retain(|disk| stays(&disk.pci_common));
    }
    if let Some(nets) = &mut config.net {
        nets.retain(|net| stays(&net.pci_common));
    }
    if config
        .vsock
        .as_ref()
        .is_some_and(|vsock| !stays(&vsock.pci_common))
    {
        config.vsock = None;
    }
    names(config).len() < before
}

#[cfg(test)]
mod tests {
    use api_client::config::{DiskConfig, NetConfig};

    use super::*;

    #[test]
    fn one_number_counts_all_kinds_and_skips_what_is_taken() {
        let mut named = DiskConfig::default();
        named.pci_common.id = Some("_disk1".into());
        let mut config = VmConfig {
            disks: Some(vec![DiskConfig::default(), named, DiskConfig::default()]),
            net: Some(vec![NetConfig::default()]),
            ..VmConfig::default()
        };
        let mut next = 0;
        name_devices(&mut config, &mut next, |_| false);
        let expected = ["_disk0", "_disk1", "_disk2", "_net3"];
        assert_eq!(names(&config), expected.map(String::from).into());
        let before = config.clone();
        name_devices(&mut config, &mut next, |_| false);
        assert_eq!(config, before);
        assert!(forget_device(&mut config, "_disk1"));
        assert!(!forget_device(&mut config, "_disk1"));
        assert_eq!(config.disks.as_ref().map(Vec::len), Some(2));
        config.net = Some(vec![NetConfig::default()]);
        name_devices(&mut config, &mut next, |name| name == "_net4");
        assert!(names(&config).contains("_net5"));
    }
}
