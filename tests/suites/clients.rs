//! Programs that were made for Cloud Hypervisor, against a VM that runs: a
//! client from its API's description, and what Kata Containers and libvirt send
//! on a VM's way from its creation to its end.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::command::{command, output};
use lab::guest::{Instruction, Program};
use lab::vmm::{Machine, Response, exchange_on, request, request_with};
use rustix::fs::{FileType, Mode};
use serde_json::{Value, json};

use crate::descriptors::{leave_open, tap};
use crate::shell::sparse;
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "clients",
    applies: Site::tries_devices,
    trials: trials![
        client_from_cloud_hypervisors_description_is_served,
        kata_containers_runtime_has_its_sandbox,
        kata_containers_runtime_rs_has_its_sandbox,
        libvirts_domain_starts_reboots_and_ends,
    ],
};

/// How long an event may take to be written.
const EVENT: Duration = Duration::from_secs(20);

fn guest(path: &Path) -> Result<()> {
    let image = Program::new().repeat(Instruction::Out(0x3f8), 1).halt();
    fs::write(path, image).context("Cannot write the guest")
}

fn client_from_cloud_hypervisors_description_is_served(site: &Site) -> Result<()> {
    // For the network device that it adds.
    if !Path::new("/dev/net/tun").exists() {
        output(&mut command("insmod", [site.module("tun")]))?;
    }
    let dir = site.fresh_dir()?;
    guest(&dir.join("guest.elf"))?;
    let mut machine = Machine::idle(&site.bin(), &dir)?;
    let client = site.bin().join("unmodified-client").display().to_string();
    let args = [machine.socket(), dir.clone(), dir.join("guest.elf")];
    output(&mut command(&client, args))?;
    let finished = machine.wait_for_end()?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    Ok(())
}

/// A body as a client sends it, its files replaced by some that exist.
fn body(text: &str, dir: &Path) -> Result<Value> {
    let mut body: Value = serde_json::from_str(text)?;
    let path = |name: &str| json!(dir.join(name));
    guest(&dir.join("kernel"))?;
    body["payload"]["kernel"] = path("kernel");
    if body["payload"]["initramfs"].is_string() {
        fs::write(dir.join("initramfs"), "an archive")?;
        body["payload"]["initramfs"] = path("initramfs");
    }
    for (number, disk) in body["disks"]
        .as_array_mut()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let name = format!("image{number}");
        sparse(&dir.join(&name), 1 << 20)?;
        disk["path"] = path(&name);
    }
    if body["vsock"].is_object() {
        body["vsock"]["socket"] = path("vsock");
    }
    Ok(body)
}

fn kata_containers_runtime_has_its_sandbox(site: &Site) -> Result<()> {
    kata(site, include_str!("../clients/kata-go.json"), "kata0")
}

fn kata_containers_runtime_rs_has_its_sandbox(site: &Site) -> Result<()> {
    kata(site, include_str!("../clients/kata-rs.json"), "kata1")
}

/// What both of Kata's runtimes do with a VM.
fn kata(site: &Site, text: &str, interface: &str) -> Result<()> {
    let tap = tap(site, interface)?;
    let dir = site.fresh_dir()?;
    let machine = Machine::idle(&site.bin(), &dir)?;
    let put = |call: &str, body: Option<Value>, expected: u16| -> Result<Response> {
        let text = body.map(|body| body.to_string());
        let answer = machine.api("PUT", &format!("/api/v1/{call}"), text.as_deref())?;
        ensure!(
            answer.status == expected,
            "{call}: {}, {}",
            answer.status,
            answer.body
        );
        Ok(answer)
    };
    put("vm.create", Some(body(text, &dir)?), 204)?;
    // The descriptor comes beside the body, which does not mention it. Before
    // the boot, nothing but 204 is a success to it.
    let net = json!({
        "id": "tap", "mac": "02:00:ca:fe:00:01", "ip": "192.168.249.1", "mask": "255.255.255.0",
        "num_queues": 2, "queue_size": 256, "iommu": false, "vhost_user": false,
        "vhost_mode": "Client", "pci_segment": 0,
    });
    let path = "/api/v1/vm.add-net";
    let added = request_with(&machine.socket(), path, &net.to_string(), &[tap.as_fd()])?;
    ensure!(added.status == 204, "{}, {}", added.status, added.body);
    put("vm.boot", None, 204)?;
    let info = machine.must("GET", "/api/v1/vm.info", None)?.json()?;
    let size = info["config"]["memory"]["size"].as_u64();
    ensure!(
        info["state"] == "Running" && info["memory_actual_size"].as_u64() == size,
        "{info}"
    );
    ensure!(vcpu_threads(machine.pid())? == ["vcpu0"], "vCPUs' threads");

    sparse(&dir.join("layer"), 1 << 20)?;
    let disk = json!({
        "path": dir.join("layer"), "readonly": true, "direct": false, "iommu": false,
        "num_queues": 1, "queue_size": 1024, "vhost_user": false, "id": "layer",
        "pci_segment": 0,
    });
    let added = put("vm.add-disk", Some(disk), 200)?.json()?;
    let bdf = added["bdf"].as_str().unwrap_or_default();
    ensure!(
        added["id"] == "layer" && bdf.starts_with("0000:00:") && bdf.ends_with(".0"),
        "{added}"
    );
    // What the sandbox has already; for more there is no way but a new VM.
    put(
        "vm.resize",
        Some(json!({"desired_vcpus": 1, "desired_ram": size})),
        204,
    )?;
    put("vm.resize", Some(json!({"desired_vcpus": 4})), 400)?;
    let counters = machine.must("GET", "/api/v1/vm.counters", None)?.json()?;
    ensure!(counters["tap"].is_object(), "{counters}");
    put("vm.remove-device", Some(json!({"id": "layer"})), 204)?;
    put("vm.shutdown", None, 204)?;
    let finished = machine.shut_down()?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    Ok(())
}

fn vcpu_threads(pid: u32) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = fs::read_to_string(task?.path().join("comm"))?;
        if name.starts_with("vcpu") {
            names.push(name.trim().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// A VMM as libvirt starts it, killed when dropped.
struct Domain {
    child: Child,
    socket: PathBuf,
    events: File,
    seen: String,
}

impl Drop for Domain {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Domain {
    /// The API's socket is open already, and the FIFO for events gets its
    /// reader later.
    fn start(site: &Site, dir: &Path) -> Result<Domain> {
        let fifo = dir.join("events");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RWXU, 0)?;
        let socket = dir.join("socket");
        let listener = UnixListener::bind(&socket)?;
        leave_open(&listener)?;
        let child = Command::new(site.bin().join("cloud-hypervisor"))
            .args(["--api-socket", &format!("fd={}", listener.as_raw_fd())])
            .args(["--event-monitor", &format!("path={}", fifo.display())])
            .stdin(Stdio::null())
            .stderr(File::create(dir.join("stderr.log"))?)
            .spawn()
            .context("Cannot start cloud-hypervisor")?;
        let mut domain = Domain {
            child,
            socket,
            events: File::options().read(true).write(true).open(&fifo)?,
            seen: String::new(),
        };
        rustix::io::ioctl_fionbio(&domain.events, true)?;
        domain.wait_for_event("vmm", "starting")?;
        Ok(domain)
    }

    /// Requests without a body may announce one.
    fn put(&self, call: &str, body: Option<&Value>) -> Result<Response> {
        let path = format!("/api/v1/{call}");
        let answer = match body {
            Some(body) => request(&self.socket, "PUT", &path, Some(&body.to_string()))?,
            None => {
                let text = format!(
                    "PUT {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\
                     Content-Length: 0\r\nExpect: 100-continue\r\n\r\n"
                );
                exchange_on(&self.socket, &text)?
            }
        };
        ensure!(
            matches!(answer.status, 200 | 204),
            "{call}: {}, {}",
            answer.status,
            answer.body
        );
        Ok(answer)
    }

    fn info(&self) -> Result<Value> {
        request(&self.socket, "GET", "/api/v1/vm.info", None)?.json()
    }

    /// Waits for an event, and says which came before it since the last one.
    fn wait_for_event(&mut self, source: &str, event: &str) -> Result<Vec<String>> {
        let wanted = format!("{source}:{event}");
        let deadline = Instant::now() + EVENT;
        let mut before = Vec::new();
        loop {
            while let Some((text, rest)) = self.seen.split_once("\n\n") {
                let found: Value = serde_json::from_str(text)?;
                let word = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
                let name = format!("{}:{}", word("source"), word("event"));
                self.seen = rest.to_owned();
                if name == wanted {
                    return Ok(before);
                }
                before.push(name);
            }
            let mut bytes = [0; 4096];
            match rustix::io::read(&self.events, &mut bytes) {
                Ok(count) => self.seen += std::str::from_utf8(&bytes[..count])?,
                Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => bail!("No event {wanted}, but {before:?}: {error}"),
            }
        }
    }
}

fn libvirts_domain_starts_reboots_and_ends(site: &Site) -> Result<()> {
    let tap = tap(site, "vnet0")?;
    let dir = site.fresh_dir()?;
    let mut domain = Domain::start(site, &dir)?;
    let ping = request(&domain.socket, "GET", "/api/v1/vmm.ping", None)?.json()?;
    let version = ping["version"].as_str().unwrap_or_default();
    ensure!(
        version
            .split('.')
            .next()
            .is_some_and(|major| major.parse().is_ok_and(|n: u32| n >= 15)),
        "{ping}"
    );
    domain.put(
        "vm.create",
        Some(&body(include_str!("../clients/libvirt.json"), &dir)?),
    )?;
    let net = json!({"mac": "52:54:00:aa:bb:cc", "num_queues": 2, "id": "net0"}).to_string();
    let added = request_with(&domain.socket, "/api/v1/vm.add-net", &net, &[tap.as_fd()])?;
    ensure!(added.status == 204, "{}, {}", added.status, added.body);
    domain.put("vm.boot", None)?;
    domain.wait_for_event("vm", "booted")?;
    let info = domain.info()?;
    let pty = info["config"]["serial"]["file"]
        .as_str()
        .unwrap_or_default();
    ensure!(
        pty.starts_with("/dev/pts/") && Path::new(pty).exists(),
        "{info}"
    );
    ensure!(
        vcpu_threads(domain.child.id())?.len() == 2,
        "vCPUs' threads"
    );
    domain.put("vm.pause", None)?;
    domain.put("vm.resume", None)?;
    sparse(&dir.join("plugged"), 1 << 20)?;
    let disk = json!({"path": dir.join("plugged"), "id": "plugged"});
    domain.put("vm.add-disk", Some(&disk))?;
    domain.put("vm.remove-device", Some(&json!({"id": "plugged"})))?;
    domain.wait_for_event("vm", "resumed")?;
    // It kills the VMM when it hears of a shutdown.
    domain.put("vm.reboot", None)?;
    domain.wait_for_event("vm", "rebooting")?;
    let between = domain.wait_for_event("vm", "rebooted")?;
    ensure!(
        between.is_empty(),
        "Between rebooting and rebooted: {between:?}"
    );
    domain.put("vm.shutdown", None)?;
    domain.wait_for_event("vm", "shutdown")?;
    domain.put("vmm.shutdown", None)?;
    let status = domain.child.wait()?;
    ensure!(status.success(), "{status}");
    let before = domain.wait_for_event("vmm", "shutdown")?;
    ensure!(before == ["vm:deleted"], "Before the end: {before:?}");
    Ok(())
}
