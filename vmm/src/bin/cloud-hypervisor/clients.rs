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

// The suite `clients` boots the same bodies.
fn parse(body: &str) -> Value {
    serde_json::from_str(body).unwrap()
}

/// Kata's runtime in Go, by a client that was generated from the description
/// of about v51: each object is sent with its defaults.
fn kata_go() -> Value {
    parse(include_str!("../../../../tests/clients/kata-go.json"))
}

/// Kata's runtime in Rust: options that are absent are null.
fn kata_rs() -> Value {
    parse(include_str!("../../../../tests/clients/kata-rs.json"))
}

/// libvirt's driver.
fn libvirt() -> Value {
    parse(include_str!("../../../../tests/clients/libvirt.json"))
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
