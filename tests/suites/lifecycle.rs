//! From creation to deletion over the API, and ends that nobody planned.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::guest::{Instruction, Program};
use lab::oracle;
use lab::vmm::Machine;
use rustix::process::{Pid, Signal, kill_process};
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
        event_monitor_tells_each_change_once_and_in_order,
    ],
};

/// What takes too long where every boot takes a second.
pub const REBOOTS: Suite = Suite {
    name: "lifecycle",
    applies: |site| site.is_patched() && site.boots_quickly(),
    trials: trials![
        hundred_resets_by_acpi_leave_nothing_behind,
        hundred_resets_by_the_keyboard_controller_leave_nothing_behind,
        hundred_resets_by_triple_fault_leave_nothing_behind,
        paused_guest_stays_paused_though_it_was_about_to_reset,
        machine_in_use_ends_in_every_way_and_takes_nothing_with_it,
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

fn event_monitor_tells_each_change_once_and_in_order(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    let image = Program::new().repeat(Instruction::Out(0x3f8), 1).halt();
    std::fs::write(&kernel, image)?;
    let events = dir.join("events");
    let monitor = format!("path={}", events.display());
    let mut machine = Machine::idle_with(&site.bin(), &dir, &["--event-monitor".into(), monitor])?;
    let config = json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Off"},
    });
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    for (action, status) in [
        ("vm.pause", 500),
        ("vm.boot", 204),
        ("vm.pause", 204),
        ("vm.pause", 500),
        ("vm.resume", 204),
        ("vm.resume", 500),
        ("vm.reboot", 204),
        ("vm.shutdown", 204),
        ("vm.boot", 204),
    ] {
        let answer = machine.api("PUT", &format!("/api/v1/{action}"), None)?;
        ensure!(answer.status == status, "{action}: {answer:?}");
    }
    machine.must("PUT", "/api/v1/vmm.shutdown", None)?;
    machine.wait_for_end()?;
    let text = std::fs::read_to_string(&events)?;
    let said = serde_json::Deserializer::from_str(&text)
        .into_iter::<serde_json::Value>()
        .map(|event| {
            let event = event?;
            Ok(format!("{} {}", event["source"], event["event"]).replace('"', ""))
        })
        .collect::<Result<Vec<String>>>()?;
    let expected = [
        "vmm starting",
        "vm booting",
        "vm booted",
        "vm pausing",
        "vm paused",
        "vm pausing",
        "vm resuming",
        "vm resumed",
        "vm resuming",
        "vm rebooting",
        "vm rebooted",
        "vm shutdown",
        "vm booting",
        "vm booted",
        "vm shutdown",
        "vm deleted",
        "vmm shutdown",
    ];
    ensure!(said == expected, "{said:?}");
    Ok(())
}

/// What the process holds while it has no guest.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    vms: usize,
    resident_kib: u64,
}

impl Holdings {
    fn after_shutdown(machine: &Machine) -> Result<Holdings> {
        put(machine, "vm.shutdown")?;
        let count = |what: &str| -> Result<usize> {
            Ok(std::fs::read_dir(format!("/proc/{}/{what}", machine.pid()))?.count())
        };
        // Connections of clients that have gone are about to be closed.
        let descriptors = (0..20)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                count("fd")
            })
            .collect::<Result<Vec<_>>>()?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", machine.pid()))?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
        Ok(Holdings {
            descriptors: descriptors.into_iter().min().unwrap_or_default(),
            threads: count("task")?,
            vms: oracle::debugfs_vms(machine.pid())?.len(),
            resident_kib: resident.context("No VmRSS")?.trim().parse()?,
        })
    }
}

/// CPUIDs of each boot of a guest that only resets.
const ASKED: u32 = 7;
/// Boots before the first look.
const WARM: usize = 10;
/// Looks after that.
const LOOKS: usize = 4;
/// Reboots between two looks.
const REBOOTS_A_LOOK: usize = 25;
/// What a leak of less than a kilobyte a reboot comes to between two looks.
const SLACK_KIB: u64 = 24;

fn hundred_resets_by_acpi_leave_nothing_behind(site: &Site) -> Result<()> {
    reboot_over_and_over(site, |program| program.write(0x602, 1).halt())
}

fn hundred_resets_by_the_keyboard_controller_leave_nothing_behind(site: &Site) -> Result<()> {
    reboot_over_and_over(site, |program| program.write(0x64, 0xfe).halt())
}

fn hundred_resets_by_triple_fault_leave_nothing_behind(site: &Site) -> Result<()> {
    reboot_over_and_over(site, Program::triple_fault)
}

fn reboot_over_and_over(site: &Site, reset: impl Fn(Program) -> Vec<u8>) -> Result<()> {
    let program = Program::new()
        .repeat(Instruction::Cpuid, ASKED)
        .repeat(Instruction::Out(0x3f8), 1);
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    std::fs::write(&kernel, reset(program))?;
    let disk = dir.join("disk");
    std::fs::write(&disk, vec![0; 64 << 10])?;
    let events = dir.join("events");
    let monitor = format!("path={}", events.display());
    let mut machine = Machine::idle_with(&site.bin(), &dir, &["--event-monitor".into(), monitor])?;
    let config = json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Pty"},
        "disks": [{"path": disk}],
        "vsock": {"cid": 3, "socket": dir.join("vsock")},
        "balloon": {"size": 1 << 20},
        "watchdog": true,
    });
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    put(&machine, "vm.boot")?;
    let mut boots = WARM;
    let mut looks: Vec<Holdings> = Vec::new();
    while looks.len() <= LOOKS {
        let mut seen = machine.serial().bytes().len();
        while seen < boots {
            // Figures begin anew at each boot, and can be read at any time.
            let exits = machine.stats()?.exits(site.numbers().cpuid);
            ensure!(
                exits <= ASKED.into(),
                "A boot has {ASKED} CPUIDs, {exits} are counted"
            );
            let more = machine.wait_for_bytes(seen as u64 + 1, site.tiny_deadline())?;
            seen = more.len();
        }
        looks.push(Holdings::after_shutdown(&machine)?);
        boots = machine.serial().bytes().len() + REBOOTS_A_LOOK;
        put(&machine, "vm.boot")?;
    }
    put(&machine, "vm.shutdown")?;
    let kept = |look: &Holdings| (look.descriptors, look.threads, look.vms);
    ensure!(
        looks.iter().all(|look| kept(look) == kept(&looks[0])),
        "Something is left behind: {looks:?}"
    );
    // The allocator takes more in steps, now and then; a leak grows always.
    let least = looks
        .windows(2)
        .map(|pair| pair[1].resident_kib.saturating_sub(pair[0].resident_kib))
        .min();
    ensure!(
        least.is_some_and(|least| least <= SLACK_KIB),
        "Memory grows with every reboot: {looks:?}"
    );
    let boots = machine.serial().bytes().len();
    let told = std::fs::read_to_string(&events)?;
    let told = told.matches("\"booted\"").count() + told.matches("\"rebooted\"").count();
    // Some boots were ended from outside, maybe before they said anything.
    ensure!(
        (told.saturating_sub(LOOKS + 2)..=told).contains(&boots),
        "{boots} boots, {told} in the event monitor"
    );
    Ok(())
}

fn paused_guest_stays_paused_though_it_was_about_to_reset(site: &Site) -> Result<()> {
    let machine = created(site, &Program::new().write(0x602, 1).halt())?;
    put(&machine, "vm.boot")?;
    for _ in 0..50 {
        put(&machine, "vm.pause")?;
        let state = state(&machine)?;
        ensure!(state == "Paused", "After pause: {state}");
        put(&machine, "vm.resume")?;
    }
    Ok(())
}

/// Waits until the guest's shell has read a line: its serial port's interrupt is
/// in use from then on.
fn typed(machine: &mut Machine, site: &Site) -> Result<()> {
    machine.wait_for("@ready", site.linux_deadline())?;
    machine.type_line("word")?;
    machine
        .wait_for("@read word", site.linux_deadline())
        .map(drop)
}

fn machine_in_use_ends_in_every_way_and_takes_nothing_with_it(site: &Site) -> Result<()> {
    let script = "echo @ready; read -r word; echo @read $word; read -r word\n";
    let mut machine = site.boot_linux(script, 2)?;
    typed(&mut machine, site)?;
    for action in ["vm.reboot", "vm.shutdown"] {
        put(&machine, action)?;
        if action == "vm.shutdown" {
            ensure!(state(&machine)? == "Created", "{}", state(&machine)?);
            put(&machine, "vm.boot")?;
        }
        typed(&mut machine, site).with_context(|| action.to_owned())?;
    }
    let pid = Pid::from_raw(machine.pid().cast_signed()).context("No process")?;
    kill_process(pid, Signal::TERM)?;
    let ended = machine.wait_for_end()?;
    ensure!(
        ended.status.success() && ended.stderr.is_empty(),
        "{}: {}",
        ended.status,
        ended.stderr
    );
    Ok(())
}
