//! Descriptors that the VMM is handed: by the one who starts it, and by its
//! clients.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::command::{command, output};
use lab::guest::{Instruction, Program};
use lab::vmm::{Machine, request};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::json;

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "descriptors",
    // Interfaces of a machine that others use are theirs.
    applies: |site| site.is_patched() && !site.is_shared(),
    trials: trials![
        tap_that_a_client_sends_is_the_machines_until_it_is_deleted,
        tap_that_comes_with_a_configuration_is_the_machines,
        tap_that_the_starter_left_open_is_the_machines,
        api_socket_that_the_starter_left_open_is_served,
    ],
};

/// An open tap interface that goes when its last descriptor does. A VMM makes
/// it, by name, and ends; the descriptor outlives it.
pub fn tap(site: &Site, name: &str) -> Result<OwnedFd> {
    if !Path::new("/dev/net/tun").exists() {
        output(&mut command("insmod", [site.module("tun")]))?;
    }
    let dir = site.fresh_dir()?;
    let machine = Machine::idle(&site.bin(), &dir)?;
    let mut config = config(&dir)?;
    config["net"] = json!([{"tap": name}]);
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    let number = open_taps(machine.pid())?
        .pop()
        .context("The VMM has no tap interface open")?;
    let pid = Pid::from_raw(i32::try_from(machine.pid())?).context("No process")?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let tap = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
    machine.shut_down()?;
    ensure!(exists(name), "{name} ended with the VMM");
    Ok(tap)
}

/// Leaves a descriptor open in programs that are started from now on.
pub fn leave_open(descriptor: &impl AsFd) -> Result<()> {
    fcntl_setfd(descriptor, FdFlags::empty()).context("Cannot leave a descriptor open")
}

/// Numbers of a process's descriptors of taps.
fn open_taps(pid: u32) -> Result<Vec<i32>> {
    let mut taps = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|target| target == Path::new("/dev/net/tun")) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            taps.push(name.parse()?);
        }
    }
    Ok(taps)
}

fn exists(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).exists()
}

/// The configuration of a guest that halts.
fn config(dir: &Path) -> Result<serde_json::Value> {
    let kernel = dir.join("guest.elf");
    let image = Program::new().repeat(Instruction::Out(0x3f8), 1).halt();
    fs::write(&kernel, image)?;
    Ok(json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "Null"},
        "console": {"mode": "Off"},
    }))
}

/// The interface lives as long as the machine's configuration, and no longer.
fn belongs_to(machine: &Machine, name: &str, ours: OwnedFd) -> Result<()> {
    drop(ours);
    ensure!(exists(name), "{name} is gone with our descriptor");
    machine.must("PUT", "/api/v1/vm.reboot", None)?;
    ensure!(exists(name), "{name} is gone after a reboot");
    machine.must("PUT", "/api/v1/vm.delete", None)?;
    ensure!(
        !exists(name),
        "{name} is still there: {:?} are open",
        open_taps(machine.pid())?
    );
    Ok(())
}

fn tap_that_a_client_sends_is_the_machines_until_it_is_deleted(site: &Site) -> Result<()> {
    let tap = tap(site, "sent0")?;
    let dir = site.fresh_dir()?;
    let machine = Machine::idle(&site.bin(), &dir)?;
    let config = config(&dir)?.to_string();
    machine.must("PUT", "/api/v1/vm.create", Some(&config))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    leave_open(&tap)?;
    let net = format!("fd=[{}],id=sent", tap.as_raw_fd());
    let added = machine.ch_remote_text(&["add-net", &net])?;
    ensure!(added.contains("\"id\":\"sent\""), "{added}");
    // The number alone is nothing to the server.
    let body = json!({"fds": [tap.as_raw_fd()]}).to_string();
    let refused = machine.api("PUT", "/api/v1/vm.add-net", Some(&body))?;
    ensure!(
        refused.status == 400 && refused.body.contains("0 came with the request"),
        "{}: {}",
        refused.status,
        refused.body
    );
    belongs_to(&machine, "sent0", tap)
}

fn tap_that_comes_with_a_configuration_is_the_machines(site: &Site) -> Result<()> {
    let tap = tap(site, "sent1")?;
    let dir = site.fresh_dir()?;
    let machine = Machine::idle(&site.bin(), &dir)?;
    let mut config = config(&dir)?;
    config["net"] = json!([{"fds": [tap.as_raw_fd()]}]);
    let file = dir.join("config.json");
    fs::write(&file, config.to_string())?;
    leave_open(&tap)?;
    machine.ch_remote_text(&["create", &file.display().to_string()])?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    belongs_to(&machine, "sent1", tap)
}

fn tap_that_the_starter_left_open_is_the_machines(site: &Site) -> Result<()> {
    let tap = tap(site, "left0")?;
    let dir = site.fresh_dir()?;
    config(&dir)?;
    let kernel = dir.join("guest.elf").display().to_string();
    leave_open(&tap)?;
    let net = format!("fd=[{}]", tap.as_raw_fd());
    let args = ["--kernel", &kernel, "--console", "off", "--net", &net].map(String::from);
    let machine = Machine::idle_with(&site.bin(), &dir, &args)?;
    drop(tap);
    machine.must("PUT", "/api/v1/vm.reboot", None)?;
    ensure!(exists("left0"), "left0 is gone with our descriptor");
    let finished = machine.shut_down()?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    ensure!(!exists("left0"), "left0 is there after the end");
    Ok(())
}

fn api_socket_that_the_starter_left_open_is_served(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let path = dir.join("socket");
    let listener = UnixListener::bind(&path)?;
    leave_open(&listener)?;
    let mut child = Command::new(site.bin().join("cloud-hypervisor"))
        .args(["--api-socket", &format!("fd={}", listener.as_raw_fd())])
        .stdin(Stdio::null())
        .spawn()
        .context("Cannot start cloud-hypervisor")?;
    drop(listener);
    // The socket listens already, so the request waits for the server.
    let asked = request(&path, "GET", "/api/v1/vmm.ping", None)
        .and_then(|answer| Ok((answer, request(&path, "PUT", "/api/v1/vmm.shutdown", None)?)));
    if asked.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    let (ping, _) = asked?;
    ensure!(
        ping.json()?["pid"].as_u64() == Some(child.id().into()) && status.success(),
        "{}, {status}",
        ping.body
    );
    Ok(())
}
