//! The requests of Kata Containers and libvirt, as they send them. What their
//! VMs are is judged with the command line, which knows the configuration.

use std::fs::File;
use std::os::fd::AsRawFd;

use api_client::config::NetConfig;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;

/// Sends a request with descriptors in one message, as both do.
fn add_net(fixture: &Fixture, body: &Value, descriptors: usize) -> NetConfig {
    let body = body.to_string();
    // As Go's httputil.DumpRequest writes it.
    let request = format!(
        "PUT /api/v1/vm.add-net HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
         Content-Length: {}\r\nContent-Type: application/json\r\n\r\n{body}",
        body.len()
    );
    let file = File::open("/dev/null").unwrap();
    let numbers = vec![file.as_raw_fd(); descriptors];
    let mut stream = fixture.connect();
    stream
        .send_with_fds(&[request.as_bytes()], &numbers)
        .unwrap();
    assert_eq!(exchange(&mut stream, ""), (204, None));
    match fixture.seen().pop() {
        Some(VmAction::AddDevice(NewDevice::Net(net, sent))) => {
            assert_eq!(net.fds, Some(sent.raw_fds()));
            *net
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn kata_and_libvirt_add_their_network_devices() {
    let fixture = Fixture::new();
    for body in [
        // Address and mask are the description's defaults up to v48.
        json!({
            "ip": "192.168.249.1", "mask": "255.255.255.0", "mac": "02:00:00:00:00:01",
            "iommu": false, "num_queues": 2, "queue_size": 256, "vhost_user": false,
            "vhost_mode": "Client", "pci_segment": 0,
        }),
        json!({
            "ip": "192.168.249.1", "mask": "255.255.255.0", "mac": "02:00:00:00:00:01",
            "iommu": false, "vhost_user": false, "vhost_mode": "Client",
        }),
        json!({"mac": "52:54:00:00:00:01"}),
    ] {
        let net = add_net(&fixture, &body, 1);
        assert!(net.mac.is_some(), "{body}");
    }
}

#[test]
fn bodies_wait_for_permission_where_clients_ask_for_it() {
    let fixture = Fixture::new();
    let mut stream = fixture.connect();
    let body = r#"{"payload": {"kernel": "/vmlinux"}, "serial": {"mode": "Pty"}}"#;
    let head = format!(
        "PUT /api/v1/vm.create HTTP/1.1\r\nHost: localhost\r\nExpect: 100-Continue\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut permission = [0; 25];
    stream.read_exact(&mut permission).unwrap();
    assert_eq!(&permission, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(exchange(&mut stream, body), (204, None));
    // Nothing to wait for, so nobody is kept waiting.
    let empty = "PUT /api/v1/vm.boot HTTP/1.1\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(exchange(&mut stream, empty), (204, None));
}
