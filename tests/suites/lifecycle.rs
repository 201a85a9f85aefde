//! From creation to deletion over the API, and ends that nobody planned.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::guest::{Instruction, Program};
use lab::oracle;
use lab::vmm::Machine;
use serde_json::json;

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "lifecycle",
    applies: Site::is_patched,
    trials: trials![
        machine_is_created_booted_and_deleted_over_the_api,
        second_boot_starts_from_zero,
        paused_guest_raises_no_exits,
        figures_only_grow_through_pauses,
        shutdown_of_the_vmm_leaves_no_socket,
        killed_vmm_leaves_no_vm_in_kvm,
    ],
};

fn state(machine: &Machine) -> Result<String> {
    let info = machine.must("GET", "/api/v1/vm.info", None)?.json()?;
    Ok(info["state"].as_str().unwrap_or_default().to_owned())
}

fn put(machine: &Machine, action: &str) -> Result<()> {
    let response = machine.must("PUT", &format!("/api/v1/{action}"), None)?;
    ensure!(
        response.status == 204 && response.body.is_empty(),
        "{action}: {response:?}"
    );
    Ok(())
}

/// An idle VMM with the configuration of a tiny guest.
fn created(site: &Site, image: &[u8]) -> Result<Machine> {
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    std::fs::write(&kernel, image)?;
    let machine = Machine::idle(&site.bin(), &dir)?;
    let config = json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Off"},
    });
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    Ok(machine)
}

fn machine_is_created_booted_and_deleted_over_the_api(site: &Site) -> Result<()> {
    let image = Program::new().repeat(Instruction::Out(0x3f8), 3).halt();
    let mut machine = created(site, &image)?;
    ensure!(
        state(&machine)? == "Created",
        "After create: {}",
        state(&machine)?
    );
    put(&machine, "vm.boot")?;
    ensure!(
        state(&machine)? == "Running",
        "After boot: {}",
        state(&machine)?
    );
    machine.wait_for_bytes(3, site.tiny_deadline())?;
    put(&machine, "vm.pause")?;
    ensure!(
        state(&machine)? == "Paused",
        "After pause: {}",
        state(&machine)?
    );
    put(&machine, "vm.resume")?;
    put(&machine, "vm.shutdown")?;
    ensure!(
        state(&machine)? == "Created",
        "After shutdown: {}",
        state(&machine)?
    );
    put(&machine, "vm.delete")?;
    let gone = machine.api("GET", "/api/v1/vm.info", None)?;
    ensure!(gone.status == 404, "After delete: {}", gone.status);
    ensure!(
        oracle::debugfs_vms(machine.pid())?.is_empty(),
        "KVM still has the machine"
    );
    Ok(())
}

fn second_boot_starts_from_zero(site: &Site) -> Result<()> {
    let image = Program::new().repeat(Instruction::Cpuid, 50).halt();
    let machine = created(site, &image)?;
    for round in 0..2 {
        put(&machine, "vm.boot")?;
        machine.wait_until_silent(site.tiny_deadline())?;
        let exits = machine.stats()?.exits(site.numbers().cpuid);
        ensure!(exits == 50, "Round {round}: 50 executed, {exits} counted");
        put(&machine, "vm.shutdown")?;
    }
    Ok(())
}

fn paused_guest_raises_no_exits(site: &Site) -> Result<()> {
    let machine = site.boot_tiny(&Program::new().ask_for_ever())?;
    std::thread::sleep(Duration::from_millis(300));
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let before = machine.debugfs_exits()?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(
        machine.debugfs_exits()? == before,
        "The guest went on while paused"
    );
    ensure!(
        machine.stats()?.totals.exits == before,
        "REST gives another total"
    );
    machine.must("PUT", "/api/v1/vm.resume", None)?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(
        machine.debugfs_exits()? > before,
        "The guest did not go on after resume"
    );
    Ok(())
}

fn figures_only_grow_through_pauses(site: &Site) -> Result<()> {
    let machine = site.boot_tiny(&Program::new().ask_for_ever())?;
    let mut before = machine.stats()?;
    for round in 0..20 {
        for action in ["vm.pause", "vm.resume"] {
            put(&machine, action)?;
            let now = machine.stats()?;
            ensure!(
                now.at_least(&before),
                "Round {round}, {action}: {:?}, then {:?}",
                before.totals,
                now.totals
            );
            before = now;
        }
    }
    Ok(())
}

fn shutdown_of_the_vmm_leaves_no_socket(site: &Site) -> Result<()> {
    let machine = site.boot_tiny(&Program::new().halt())?;
    let socket = machine.socket();
    let finished = machine.shut_down()?;
    ensure!(
        finished.status.success(),
        "{}: {}",
        finished.status,
        finished.stderr
    );
    ensure!(!socket.exists(), "{} is still there", socket.display());
    Ok(())
}

fn killed_vmm_leaves_no_vm_in_kvm(site: &Site) -> Result<()> {
    let machine = site.boot_tiny(&Program::new().ask_for_ever())?;
    let pid = machine.pid();
    ensure!(
        !oracle::debugfs_vms(pid)?.is_empty(),
        "There is no machine to begin with"
    );
    machine.kill()?;
    for _ in 0..100 {
        if oracle::debugfs_vms(pid)?.is_empty() {
            ensure!(
                !Path::new(&format!("/proc/{pid}")).exists(),
                "The process is still there"
            );
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("KVM still has the machine of a process that is gone")
}
