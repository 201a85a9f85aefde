//! What the VMM keeps itself from.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::guest::{Instruction, Program};
use lab::oracle::try_open;
use lab::vmm::Machine;
use nix::errno::Errno;
use serde_json::json;

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "sandbox",
    applies: Site::is_patched,
    trials: trials![
        every_thread_has_a_filter_of_system_calls,
        violation_ends_the_vmm_with_a_message,
        landlock_opens_what_is_configured_and_nothing_else,
        confined_vm_reboots_with_any_console,
    ],
};

/// What steps through system calls: Bochs leaves the trap flag set in the kernel,
/// which warns of that.
pub const STEPPED: Suite = Suite {
    name: "sandbox",
    applies: |site| site.is_patched() && site.boots_quickly(),
    trials: trials![landlock_holds_for_every_thread],
};

/// An idle VMM with a guest that has said two words, and more of a
/// configuration.
fn running(site: &Site, more: &serde_json::Value) -> Result<Machine> {
    let dir = site.fresh_dir()?;
    start(site, &dir, &[], more)
}

/// The same with arguments for the VMM.
fn start(site: &Site, dir: &Path, args: &[String], more: &serde_json::Value) -> Result<Machine> {
    let kernel = dir.join("guest.elf");
    let image = Program::new().repeat(Instruction::Out(0x3f8), 2).halt();
    fs::write(&kernel, image)?;
    let mut machine = Machine::idle_with(&site.bin(), dir, args)?;
    let mut config = json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Off"},
        "watchdog": true,
        "balloon": {"size": 1 << 20},
        "vsock": {"cid": 3, "socket": dir.join("vsock")},
    });
    for (key, value) in more.as_object().context("Not an object")? {
        config[key] = value.clone();
    }
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    machine.wait_for_bytes(2, site.tiny_deadline())?;
    Ok(machine)
}

/// A disk image of a few blocks.
fn image(path: &Path) -> Result<()> {
    fs::write(path, vec![0; 64 << 10]).with_context(|| format!("Cannot write {}", path.display()))
}

fn every_thread_has_a_filter_of_system_calls(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    image(&dir.join("disk"))?;
    let disks = json!({"disks": [{"path": dir.join("disk")}]});
    let machine = running(site, &disks)?;
    let mut names = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", machine.pid()))? {
        let task = task?.path();
        let name = fs::read_to_string(task.join("comm"))?.trim().to_owned();
        let status = fs::read_to_string(task.join("status"))?;
        for (field, value) in [("Seccomp:", '2'), ("NoNewPrivs:", '1')] {
            let line = status.lines().find(|line| line.starts_with(field));
            ensure!(
                line.is_some_and(|line| line.ends_with(value)),
                "Thread {name}: {line:?}"
            );
        }
        names.push(name);
    }
    for kind in ["api", "vcpu0", "__rng", "__watchdog", "__balloon"] {
        ensure!(names.iter().any(|name| name == kind), "{kind}: {names:?}");
    }
    for kind in ["_disk", "_vsock"] {
        ensure!(
            names.iter().any(|name| name.starts_with(kind)),
            "{kind}: {names:?}"
        );
    }
    let finished = machine.shut_down()?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    Ok(())
}

fn violation_ends_the_vmm_with_a_message(site: &Site) -> Result<()> {
    let mut machine = running(site, &json!({}))?;
    // The signal that a filter sends; which thread gets it, the kernel decides.
    let sent = Command::new("/bin/busybox")
        .args(["kill", "-SYS", &machine.pid().to_string()])
        .status()
        .context("Cannot start kill")?;
    ensure!(sent.success(), "kill: {sent}");
    let finished = machine.wait_for_end()?;
    ensure!(
        finished.status.code() == Some(1),
        "The VMM ended with {}",
        finished.status
    );
    ensure!(
        finished.stderr.contains("thread ") && finished.stderr.contains("the VM ends"),
        "It said: {}",
        finished.stderr
    );
    Ok(())
}

fn landlock_opens_what_is_configured_and_nothing_else(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let [configured, allowed, other] =
        ["configured", "allowed", "other"].map(|name| dir.join(name));
    for path in [&configured, &allowed, &other] {
        image(path)?;
    }
    let machine = running(
        site,
        &json!({
            "disks": [{"path": configured}],
            "landlock_enable": true,
            "landlock_rules": [{"path": allowed, "access": "rw"}],
        }),
    )?;
    let add = |path: &Path| {
        let body = json!({"path": path}).to_string();
        machine.api("PUT", "/api/v1/vm.add-disk", Some(&body))
    };
    let added = add(&allowed)?;
    ensure!(added.status == 200, "{}: {}", added.status, added.body);
    let refused = add(&other)?;
    ensure!(
        refused.status == 400 && refused.body.contains("Permission denied"),
        "{}: {}",
        refused.status,
        refused.body
    );
    machine.must("PUT", "/api/v1/vm.reboot", None)?;
    let finished = machine.shut_down()?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    Ok(())
}

fn landlock_holds_for_every_thread(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    image(&dir.join("disk"))?;
    // Without the filters, which would end the process at the first attempt.
    let args = ["--seccomp", "false", "--event-monitor"].map(String::from);
    let events = format!("path={}", dir.join("events").display());
    let config = json!({"disks": [{"path": dir.join("disk")}], "landlock_enable": true});
    let machine = start(site, &dir, &[&args[..], &[events]].concat(), &config)?;
    let attempts = try_open(
        machine.pid(),
        Path::new("/proc/version"),
        site.tiny_deadline(),
    )?;
    for thread in [
        "cloud-hyperviso",
        "api",
        "event-monitor",
        "shutdown-watch",
        "vcpu0",
    ] {
        ensure!(
            attempts.iter().any(|attempt| attempt.thread == thread),
            "There is no thread {thread}: {attempts:?}"
        );
    }
    for attempt in &attempts {
        ensure!(attempt.outcome == Err(Errno::EACCES), "{attempt:?}");
    }
    // They go on as if nothing had happened, and the sockets go at the end.
    machine.must("PUT", "/api/v1/vm.reboot", None)?;
    let socket = machine.socket();
    let finished = machine.shut_down()?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    for name in [socket, dir.join("vsock")] {
        ensure!(!name.exists(), "{} is still there", name.display());
    }
    Ok(())
}

fn confined_vm_reboots_with_any_console(site: &Site) -> Result<()> {
    for mode in ["Socket", "Pty", "File", "Null"] {
        let dir = site.fresh_dir()?;
        let kernel = dir.join("guest.elf");
        fs::write(&kernel, Program::new().halt())?;
        let machine = Machine::idle(&site.bin(), &dir)?;
        let end = |name: &str| match mode {
            "Socket" => json!({"mode": mode, "socket": dir.join(name)}),
            "File" => json!({"mode": mode, "file": dir.join(name)}),
            _ => json!({"mode": mode}),
        };
        let config = json!({
            "memory": {"size": 64 << 20},
            "payload": {"kernel": kernel},
            "serial": end("serial"),
            "console": end("console"),
            "landlock_enable": true,
        })
        .to_string();
        // The second time, the VM is created by a process that is confined.
        for round in ["first", "second"] {
            machine.must("PUT", "/api/v1/vm.create", Some(&config))?;
            for action in [
                "vm.boot",
                "vm.reboot",
                "vm.reboot",
                "vm.shutdown",
                "vm.boot",
            ] {
                machine
                    .must("PUT", &format!("/api/v1/{action}"), None)
                    .with_context(|| format!("{mode}, {round}"))?;
            }
            let info = machine.must("GET", "/api/v1/vm.info", None)?.json()?;
            ensure!(info["state"] == "Running", "{mode}, {round}: {info}");
            machine.must("PUT", "/api/v1/vm.delete", None)?;
        }
        let finished = machine.shut_down()?;
        ensure!(finished.status.success(), "{mode}: {}", finished.stderr);
    }
    Ok(())
}
