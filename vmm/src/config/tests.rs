use std::path::PathBuf;

use api_client::config::{
    CpuAffinity, CpuTopology, DiskConfig, MemoryZoneConfig, PlatformConfig, RateLimiterGroupConfig,
};

use super::*;
use crate::chardev::ConsoleTarget;

fn config() -> VmConfig {
    VmConfig {
        payload: Some(PayloadConfig {
            kernel: Some("/boot/vmlinuz".into()),
            cmdline: Some("quiet".into()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn check(change: impl FnOnce(&mut VmConfig)) -> Result<VmParams, ConfigError> {
    let mut config = config();
    change(&mut config);
    VmParams::try_from(&config)
}

#[test]
fn defaults_are_one_vcpu_and_512_mib() {
    let params = check(|_| {}).unwrap();
    assert_eq!((params.cpus.count, params.memory[0].size), (1, 512 << 20));
    assert_eq!(params.consoles.serial, Some(ConsoleTarget::Null));
    assert_eq!(params.payload.kernel, PathBuf::from("/boot/vmlinuz"));
    assert!(params.memory[0].backing.thp && params.cpus.nested);
}

#[test]
fn something_to_boot_is_needed_and_only_one_thing() {
    assert_eq!(check(|c| c.payload = None), Err(ConfigError::NoKernel));
    assert_eq!(
        check(|c| c.payload = Some(PayloadConfig::default())),
        Err(ConfigError::NoKernel)
    );
    let firmware = |c: &mut VmConfig| {
        c.payload.as_mut().unwrap().firmware = Some("/fw".into());
    };
    assert_eq!(check(firmware), Err(ConfigError::KernelAndFirmware));
}

#[test]
fn firmware_takes_neither_command_line_nor_initramfs() {
    let payload = check(|c| {
        c.payload = Some(PayloadConfig {
            firmware: Some("/fw".into()),
            cmdline: Some("quiet".into()),
            initramfs: Some("/i".into()),
            ..Default::default()
        });
    })
    .unwrap()
    .payload;
    assert!(payload.firmware);
    assert_eq!(payload.kernel, PathBuf::from("/fw"));
    assert_eq!((payload.initramfs, payload.cmdline), (None, String::new()));
}

#[test]
fn vcpus_are_counted_from_1_to_what_kvm_can_be_built_for() {
    let over = MAX_VCPUS + 1;
    for (boot, max) in [
        (0, 1),
        (1, 0),
        (over, over),
        (1, over),
        (u32::MAX, u32::MAX),
    ] {
        assert!(matches!(
            check(|c| (c.cpus.boot_vcpus, c.cpus.max_vcpus) = (boot, max)),
            Err(ConfigError::VcpuCount(_))
        ));
    }
    assert!(matches!(
        check(|c| (c.cpus.boot_vcpus, c.cpus.max_vcpus) = (4, 2)),
        Err(ConfigError::BootOverMax { boot: 4, max: 2 })
    ));
    let params = check(|c| (c.cpus.boot_vcpus, c.cpus.max_vcpus) = (64, 64)).unwrap();
    assert_eq!(params.cpus.topology.threads_per_package(), 64);
}

#[test]
fn a_topology_has_to_add_up() {
    let with = |threads_per_core, cores_per_die, packages| {
        check(|c| {
            (c.cpus.boot_vcpus, c.cpus.max_vcpus) = (8, 8);
            c.cpus.topology = Some(CpuTopology {
                threads_per_core,
                cores_per_die,
                dies_per_package: 1,
                packages,
            });
        })
    };
    let topology = with(2, 2, 2).unwrap().cpus.topology;
    assert_eq!(
        (topology.threads_per_core, topology.threads_per_package()),
        (2, 4)
    );
    assert_eq!(
        with(2, 2, 1),
        Err(ConfigError::Topology { product: 4, max: 8 })
    );
    assert!(with(0, 2, 2).is_err());
}

#[test]
fn vcpus_are_bound_to_cpus_by_number() {
    let with = |affinity: &[(u32, &[usize])]| {
        let affinity: Vec<_> = affinity
            .iter()
            .map(|&(vcpu, host_cpus)| CpuAffinity {
                vcpu,
                host_cpus: host_cpus.to_vec(),
            })
            .collect();
        check(move |c| {
            (c.cpus.boot_vcpus, c.cpus.max_vcpus) = (2, 2);
            c.cpus.affinity = Some(affinity);
        })
        .map(|params| params.cpus.affinity)
    };
    assert_eq!(with(&[(1, &[0, 3])]), Ok(vec![vec![], vec![0, 3]]));
    assert_eq!(with(&[(2, &[0])]), Err(ConfigError::NoSuchVcpu(2)));
    assert_eq!(with(&[(0, &[])]), Err(ConfigError::VcpuCpus(0)));
    let twice: &[(u32, &[usize])] = &[(0, &[0]), (0, &[1])];
    assert_eq!(with(twice), Err(ConfigError::VcpuCpus(0)));
}

#[test]
fn what_is_missing_is_refused_by_name() {
    assert_eq!(
        check(|c| c.iommu = true),
        Err(ConfigError::Unsupported("iommu (a virtual IOMMU)".into()))
    );
    type Change = fn(&mut PlatformConfig);
    let fields: [(Change, &str); 6] = [
        (|p| p.num_pci_segments = 2, "platform.num_pci_segments"),
        (
            |p| p.iommu_segments = Some(vec![0]),
            "platform.iommu_segments",
        ),
        (
            |p| p.iommu_address_width = 48,
            "platform.iommu_address_width_bits",
        ),
        (|p| p.iommufd = true, "platform.iommufd"),
        (|p| p.vfio_p2p_dma = false, "platform.vfio_p2p_dma"),
        (|p| p.tdx = true, "platform.tdx"),
    ];
    for (change, field) in fields {
        let mut platform = PlatformConfig::default();
        change(&mut platform);
        let error = check(|c| c.platform = Some(platform)).unwrap_err();
        assert!(error.to_string().starts_with(field), "{error}");
    }
    assert!(check(|c| c.platform = Some(PlatformConfig::default())).is_ok());
    assert!(check(|c| c.disks = Some(Vec::new())).is_ok());
}

#[test]
fn an_id_is_printable_and_of_bounded_length() {
    let with = |id: &str| {
        check(|c| {
            c.rng.pci_common.id = Some(id.to_owned());
            c.rate_limit_groups = Some(vec![RateLimiterGroupConfig {
                id: id.to_owned(),
                ..Default::default()
            }]);
            c.memory.size = 0;
            c.memory.zones = Some(vec![MemoryZoneConfig {
                id: id.to_owned(),
                size: 64 << 20,
                ..Default::default()
            }]);
        })
    };
    for id in ["a", "two words", "\"'\\", "Größe 数", &"x".repeat(255)] {
        assert!(with(id).is_ok(), "{id:?}");
    }
    for id in ["a\nb", "a\0", "\u{7f}", "\u{85}", "__a", &"x".repeat(256)] {
        let refused = Err(ConfigError::DeviceId(id.to_owned()));
        assert_eq!(with(id), refused);
        let group = check(|c| {
            c.rate_limit_groups = Some(vec![RateLimiterGroupConfig {
                id: id.to_owned(),
                ..Default::default()
            }]);
        });
        assert_eq!(group, refused);
    }
}

#[test]
fn disks_are_checked_against_the_machine() {
    let with = |change: fn(&mut DiskConfig)| {
        let mut disk = DiskConfig {
            path: Some("/disk".into()),
            ..DiskConfig::default()
        };
        change(&mut disk);
        check(move |c| {
            c.cpus.boot_vcpus = 2;
            c.cpus.max_vcpus = 2;
            c.disks = Some(vec![disk]);
        })
        .map(|params| params.devices.disks[0].params.clone())
    };
    let disk = with(|disk| disk.num_queues = 2).unwrap();
    assert_eq!((disk.queues, disk.queue_size), (2, 128));
    assert_eq!(with(|disk| disk.path = None), Err(ConfigError::DiskPath));
    // As for Cloud Hypervisor's clients, which leave it to the VMM so.
    assert_eq!(with(|disk| disk.num_queues = 0).unwrap().queues, 1);
    assert!(with(|disk| disk.queue_size = 32768).is_ok());
    assert!(with(|disk| disk.serial = Some("twenty-bytes-exactly".into())).is_ok());
    let long = "twenty-one characters";
    assert_eq!(
        with(|disk| disk.serial = Some("twenty-one characters".into())),
        Err(ConfigError::DiskSerial(long.into()))
    );
    for queues in [3, 1 << 16] {
        let params = match queues {
            3 => with(|disk| disk.num_queues = 3),
            _ => with(|disk| disk.num_queues = 1 << 16),
        };
        let asked = queues;
        assert_eq!(params, Err(ConfigError::DiskQueues { asked, vcpus: 2 }));
    }
    assert!(matches!(
        with(|disk| disk.queue_size = 100),
        Err(ConfigError::DiskQueueSize(100))
    ));
    assert!(matches!(
        with(|disk| disk.queue_size = 2),
        Err(ConfigError::DiskQueueSize(2))
    ));
    assert_eq!(
        with(|disk| disk.rate_limit_group = Some("g".into())),
        Err(ConfigError::NoSuchGroup("g".into()))
    );
    assert_eq!(
        with(|disk| disk.pci_common.id = Some("__rng".into())),
        Err(ConfigError::DeviceId("__rng".into()))
    );
    assert_eq!(
        with(|disk| disk.pci_common.pci_device_id = Some(32)),
        Err(ConfigError::PciDevice(32))
    );
}
