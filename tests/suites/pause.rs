//! A paused VM stands still as a whole, whatever its devices were about.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::command::{command, output};
use lab::oracle::guest_memory_checksum;
use serde_json::json;

use crate::shell::{Guest, sparse};
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "pause",
    applies: Site::tries_devices,
    trials: trials![no_byte_of_a_paused_vm_changes_whatever_its_devices_do],
};

/// Unlike the size of any other mapping of a VMM.
const MEMORY: u64 = 192 << 20;
const ROUNDS: u64 = 5;
/// Of the host and the guest on the tap.
const HOST: &str = "192.168.81.1";
const GUEST: &str = "192.168.81.2";

/// Threads of the host that never let a guest's devices rest. Dropping it ends
/// them.
struct Load {
    ended: Arc<AtomicBool>,
    port: u16,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(vsock: PathBuf) -> Result<Load> {
        let ended = Arc::new(AtomicBool::new(false));
        let listener = TcpListener::bind((HOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let (net_end, vsock_end) = (Arc::clone(&ended), Arc::clone(&ended));
        let threads = vec![
            thread::spawn(move || net_load(&listener, &net_end)),
            thread::spawn(move || vsock_load(&vsock, &vsock_end)),
        ];
        Ok(Load {
            ended,
            port,
            threads,
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in it was printed.
            let _ = thread.join();
        }
    }
}

/// Sends to the guest whatever it takes, and reads what it sends.
fn net_load(listener: &TcpListener, ended: &AtomicBool) {
    let mut peer = None;
    let mut buffer = vec![0; 64 << 10];
    while !ended.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            peer = Some(stream);
        }
        let Some(stream) = &mut peer else {
            sleep(Duration::from_millis(10));
            continue;
        };
        let done = [stream.write(&buffer), stream.read(&mut buffer)];
        if done
            .iter()
            .all(|done| matches!(done, Err(error) if error.kind() == ErrorKind::WouldBlock))
        {
            sleep(Duration::from_millis(1));
        }
    }
}

/// Connects to a port of the guest where nobody listens: a packet to the guest
/// each time, and one back.
fn vsock_load(socket: &Path, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        let Ok(mut stream) = UnixStream::connect(socket) else {
            continue;
        };
        let asked = stream
            .set_read_timeout(Some(Duration::from_millis(500)))
            .and_then(|()| stream.write_all(b"CONNECT 5000\n"));
        if asked.is_ok() {
            // Refused, or still waiting because the guest stands still.
            let _ = stream.read(&mut [0; 16]);
        }
    }
}

fn no_byte_of_a_paused_vm_changes_whatever_its_devices_do(site: &Site) -> Result<()> {
    if !Path::new("/dev/net/tun").exists() {
        output(&mut command("insmod", [site.module("tun")]))?;
    }
    let mut guest = Guest::boot_with(
        site,
        |dir| sparse(&dir.join("disk"), 64 << 20),
        |dir| {
            json!({
                "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
                "memory": {"size": MEMORY, "shared": true},
                "disks": [{"path": dir.join("disk"), "id": "disk", "num_queues": 2}],
                "net": [{"tap": "pause0", "ip": HOST, "mask": "255.255.255.0", "id": "net"}],
                "vsock": {"cid": 3, "socket": dir.join("vsock")},
                "balloon": {"size": 0, "free_page_reporting": true},
                "watchdog": true,
            })
        },
    )?;
    let load = Load::start(guest.dir.join("vsock"))?;
    guest.run(&format!("ifconfig eth0 {GUEST} netmask 255.255.255.0 up"))?;
    for work in [
        "dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null".to_owned(),
        "dd if=/dev/urandom of=/dev/vda bs=16k count=64 oflag=direct conv=notrunc 2>/dev/null"
            .to_owned(),
        format!("nc {HOST} {} </dev/zero >/dev/null 2>&1", load.port),
    ] {
        guest.run(&format!("(while :; do {work}; done) &"))?;
    }
    let mut counted = Vec::new();
    for round in 0..ROUNDS {
        let balloon = json!({"desired_balloon": (round % 2) * (32 << 20)}).to_string();
        guest
            .machine
            .must("PUT", "/api/v1/vm.resize", Some(&balloon))?;
        sleep(Duration::from_millis(700));
        guest.machine.must("PUT", "/api/v1/vm.pause", None)?;
        let before = guest_memory_checksum(guest.machine.pid(), MEMORY)?;
        sleep(Duration::from_millis(700));
        let after = guest_memory_checksum(guest.machine.pid(), MEMORY)?;
        ensure!(before == after, "Round {round}: the memory has changed");
        counted.push([
            guest.counter("disk", "read_ops")?,
            guest.counter("disk", "write_ops")?,
            guest.counter("net", "rx_frames")?,
            guest.counter("net", "tx_frames")?,
        ]);
        guest.machine.must("PUT", "/api/v1/vm.resume", None)?;
    }
    drop(load);
    // What had nothing to do was not put to the test.
    let all_grew = counted[0]
        .iter()
        .zip(counted[counted.len() - 1])
        .all(|(&first, last)| first < last);
    ensure!(all_grew, "Operations by pause: {counted:?}");
    let complaints = guest.run("dmesg | grep -E 'I/O error|lockup|stall' || true")?;
    ensure!(
        complaints.is_empty(),
        "The guest's kernel says:\n{complaints}"
    );
    Ok(())
}
