//! What Kata Containers and libvirt create, as they send it, held against the
//! checks of a boot. The requests around it are the API's tests.

use api_client::config::{NetConfig, VmConfig, unknown_field};
use serde_json::{Value, json};
use vmm::config::VmParams;

/// Judges the body of `vm.create` as its request and a boot do.
fn create(body: &Value) -> Result<(), String> {
    if let Some(field) = unknown_field("VmConfig", body) {
        return Err(field);
    }
    let config: VmConfig =
        serde_json::from_value(body.clone()).map_err(|error| error.to_string())?;
    let judged = VmParams::try_from(&config);
    judged.map(drop).map_err(|error| error.to_string())
}

/// Kata's runtime in Go, by a client that was generated from the description
/// of about v51: each object is sent with its defaults.
fn kata_go() -> Value {
    json!({
        "cpus": {
            "boot_vcpus": 1, "max_vcpus": 8,
            "topology": {
                "threads_per_core": 1, "cores_per_die": 8,
                "dies_per_package": 1, "packages": 1,
            },
        },
        "memory": {
            "size": 2147483648u64, "hotplug_size": 0, "hotplug_method": "Acpi",
            "mergeable": false, "shared": true, "hugepages": false,
            "prefault": false, "thp": true,
        },
        "payload": {
            "kernel": "/opt/kata/share/kata-containers/vmlinux.container",
            "cmdline": "root=/dev/vda1 rootflags=data=ordered ro rootfstype=ext4 quiet",
        },
        "disks": [{
            "path": "/opt/kata/share/kata-containers/kata-containers.img", "readonly": true,
            "direct": false, "iommu": false, "num_queues": 1, "queue_size": 128,
            "vhost_user": false, "pci_segment": 0,
        }],
        "rng": {"src": "/dev/urandom", "iommu": false},
        "serial": {"mode": "Off", "iommu": false},
        "console": {"mode": "Pty", "iommu": false},
        "platform": {"num_pci_segments": 1},
        "vsock": {"cid": 3, "socket": "/run/vc/vm/a/clh.sock", "iommu": false, "pci_segment": 0},
        "iommu": false, "watchdog": false, "pvpanic": false, "landlock_enable": false,
    })
}

/// Kata's runtime in Rust: options that are absent are null.
fn kata_rs() -> Value {
    json!({
        "cpus": {
            "boot_vcpus": 1, "max_vcpus": 8,
            "topology": {
                "threads_per_core": 1, "cores_per_die": 8,
                "dies_per_package": 1, "packages": 1,
            },
            "kvm_hyperv": false, "features": {"amx": false},
        },
        "memory": {
            "size": 2147483648u64, "mergeable": false, "hotplug_method": "Acpi",
            "shared": true, "hugepages": false, "prefault": false,
        },
        "payload": {
            "firmware": null, "kernel": "/vmlinux", "cmdline": "quiet", "initramfs": null,
        },
        "disks": [{
            "path": "/image", "readonly": true, "direct": false, "iommu": false,
            "num_queues": 1, "queue_size": 1024, "vhost_user": false, "vhost_socket": null,
            "rate_limiter_config": null, "id": null, "disable_io_uring": false,
            "pci_segment": 0,
        }],
        "net": [],
        "rng": {"src": "/dev/urandom", "iommu": false},
        "serial": {"file": null, "mode": "Tty", "iommu": false},
        "console": {"file": null, "mode": "Off", "iommu": false},
        "vsock": {
            "cid": 3, "socket": "/run/kata/a/ch-vm.sock", "iommu": false, "id": null,
            "pci_segment": 0,
        },
        "iommu": false, "watchdog": false,
        "platform": {
            "num_pci_segments": 1, "iommu_segments": null, "serial_number": null,
            "uuid": null, "oem_strings": null, "tdx": false,
        },
    })
}

/// libvirt's driver.
fn libvirt() -> Value {
    json!({
        "cpus": {"boot_vcpus": 2, "max_vcpus": 4},
        "memory": {"size": 1073741824u64},
        "payload": {"kernel": "/vmlinux", "cmdline": "console=ttyS0", "initramfs": "/initrd"},
        "disks": [{"path": "/disk.raw"}, {"path": "/cdrom.iso", "readonly": true}],
        "console": {"mode": "Null"},
        "serial": {"mode": "Pty"},
    })
}

#[test]
fn kata_and_libvirt_create_their_vms() {
    for body in [kata_go(), kata_rs(), libvirt()] {
        assert_eq!(create(&body), Ok(()), "{body}");
    }
}

#[test]
fn what_kata_needs_and_is_not_here_is_named() {
    for (pointer, value, field) in [
        (
            "/memory/hotplug_size",
            json!(6442450944u64),
            "memory.hotplug_size",
        ),
        (
            "/platform/num_pci_segments",
            json!(2),
            "platform.num_pci_segments",
        ),
        (
            "/pmem",
            json!([{"file": "/image", "discard_writes": true}]),
            "pmem",
        ),
        (
            "/fs",
            json!([{"tag": "kataShared", "socket": "/s", "num_queues": 1, "queue_size": 1024}]),
            "fs",
        ),
    ] {
        let mut body = kata_go();
        match body.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => body[&pointer[1..]] = value,
        }
        let error = create(&body).unwrap_err();
        assert!(error.starts_with(field), "{error}");
    }
}

#[test]
fn an_address_that_clients_always_send_is_no_obstacle_to_descriptors() {
    let with = |address: &str, mask: &str| {
        let net = json!({
            "ip": address, "mask": mask, "mac": "02:00:00:00:00:01", "fds": [3], "iommu": false,
            "num_queues": 2, "queue_size": 256, "vhost_user": false, "vhost_mode": "Client",
        });
        assert_eq!(unknown_field("NetConfig", &net), None);
        let net: NetConfig = serde_json::from_value(net).unwrap();
        let mut config: VmConfig = serde_json::from_value(libvirt()).unwrap();
        config.net = Some(vec![net]);
        VmParams::try_from(&config).is_ok()
    };
    assert!(with("192.168.249.1", "255.255.255.0"));
    assert!(!with("192.168.249.2", "255.255.255.0"));
    assert!(!with("192.168.249.1", "255.255.0.0"));
}
