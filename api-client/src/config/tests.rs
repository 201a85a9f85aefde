use super::*;

#[test]
fn an_empty_object_is_the_default_machine() {
    let config: VmConfig = serde_json::from_str("{}").unwrap();
    assert_eq!(config, VmConfig::default());
    assert_eq!(config.cpus.boot_vcpus, 1);
    assert_eq!(config.cpus.max_vcpus, 1);
    assert_eq!(config.memory.size, 512 << 20);
    assert!(config.memory.thp);
    assert_eq!(config.serial.mode, ConsoleOutputMode::Null);
    assert_eq!(config.console.mode, ConsoleOutputMode::Tty);
    assert_eq!(config.debug_console.iobase, Some(0xe9));
    assert_eq!(config.rng.src.to_str(), Some("/dev/urandom"));
}

#[test]
fn absent_options_stay_absent_when_written() {
    let text = serde_json::to_string(&VmConfig::default()).unwrap();
    assert!(!text.contains("null"), "{text}");
    for key in ["payload", "disks", "net", "platform", "topology", "zones"] {
        assert!(!text.contains(&format!("\"{key}\"")), "{key} in {text}");
    }
}

#[test]
fn unknown_fields_are_ignored_at_every_level() {
    let config: VmConfig = serde_json::from_str(
        r#"{"unheard_of": 1, "cpus": {"boot_vcpus": 2, "x": []}, "disks": [{"path": "/a", "y": {}}]}"#,
    )
    .unwrap();
    assert_eq!(config.cpus.max_vcpus, 2);
    assert_eq!(config.disks.unwrap()[0].num_queues, 1);
}

#[test]
fn device_identity_is_flattened() {
    let disk = DiskConfig {
        pci_common: PciCommon {
            id: Some("root".into()),
            pci_segment: 1,
            ..Default::default()
        },
        ..Default::default()
    };
    let value = serde_json::to_value(&disk).unwrap();
    assert_eq!(value["id"], "root");
    assert_eq!(value["pci_segment"], 1);
    assert_eq!(value["iommu"], false);
    assert!(value.get("pci_common").is_none());
    assert_eq!(serde_json::from_value::<DiskConfig>(value).unwrap(), disk);
}

#[test]
fn what_is_written_reads_back_equal() {
    let config = VmConfig {
        net: Some(vec![NetConfig {
            mac: Some("12:34:56:78:9a:bc".parse().unwrap()),
            ..Default::default()
        }]),
        fs: Some(vec![FsConfig::default()]),
        vdpa: Some(vec![VdpaConfig::default()]),
        platform: Some(PlatformConfig::default()),
        numa: Some(vec![NumaConfig::default()]),
        vsock: Some(VsockConfig::default()),
        balloon: Some(BalloonConfig::default()),
        ..Default::default()
    };
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<VmConfig>(&text).unwrap(), config);
}

#[test]
fn a_mac_address_is_six_pairs_and_nothing_else() {
    for text in [
        "",
        "12:34:56:78:9a",
        "12:34:56:78:9a:bc:de",
        "12:34:56:78:9a:g0",
        "+1:34:56:78:9a:bc",
        "1:34:56:78:9a:bc",
    ] {
        assert_eq!(text.parse::<MacAddr>(), Err(MacAddrError(text.to_owned())));
    }
    assert_eq!(
        "12:34:56:78:9A:bc".parse::<MacAddr>().unwrap().to_string(),
        "12:34:56:78:9a:bc"
    );
}
