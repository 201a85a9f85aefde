//! Load from the host on a guest's network and socket devices.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::Result;
use lab::command::{command, output};
use serde_json::{Value, json};

use crate::shell::{Guest, sparse};
use crate::site::Site;

/// Loads the driver of tap interfaces, once.
pub fn load_tun(site: &Site) -> Result<()> {
    if !Path::new("/dev/net/tun").exists() {
        output(&mut command("insmod", [site.module("tun")]))?;
    }
    Ok(())
}

/// A tap interface with the addresses at both of its ends.
pub struct Tap {
    pub name: &'static str,
    pub host: &'static str,
    pub guest: &'static str,
    /// The host's hardware address: the guest finds it again when the interface is
    /// made anew.
    pub host_mac: &'static str,
}

/// Boots Linux on two vCPUs with a disk, this interface and a socket device, `more` of
/// the configuration besides or instead, and brings the interface up.
pub fn boot(site: &Site, tap: &Tap, disk: u64, more: impl FnOnce(&Path) -> Value) -> Result<Guest> {
    load_tun(site)?;
    let mut guest = Guest::boot_with(
        site,
        |dir| sparse(&dir.join("disk"), disk),
        |dir| {
            let mut config = json!({
                "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
                "disks": [{"path": dir.join("disk"), "id": "disk"}],
                "net": [{
                    "tap": tap.name, "ip": tap.host, "mask": "255.255.255.0", "id": "net",
                    "host_mac": tap.host_mac,
                }],
                "vsock": {"cid": 3, "socket": dir.join("vsock"), "id": "vsock"},
            });
            if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more(dir)) {
                config.extend(more);
            }
            config
        },
    )?;
    guest.run(&format!(
        "ifconfig eth0 {} netmask 255.255.255.0 up",
        tap.guest
    ))?;
    Ok(guest)
}

/// Threads of the host that never let a guest's devices rest. Dropping it ends
/// them.
pub struct Unrest {
    ended: Arc<AtomicBool>,
    port: u16,
    threads: Vec<JoinHandle<()>>,
}

impl Unrest {
    pub fn start(host: &str, vsock: PathBuf) -> Result<Unrest> {
        let ended = Arc::new(AtomicBool::new(false));
        let listener = TcpListener::bind((host, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let (net_end, vsock_end) = (Arc::clone(&ended), Arc::clone(&ended));
        let threads = vec![
            thread::spawn(move || net_load(&listener, &net_end)),
            thread::spawn(move || vsock_load(&vsock, &vsock_end)),
        ];
        Ok(Unrest {
            ended,
            port,
            threads,
        })
    }

    /// The port to connect to and to send to and to read from without end.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Unrest {
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
        // A guest with one CPU is to come to something else as well.
        sleep(Duration::from_millis(5));
    }
}
