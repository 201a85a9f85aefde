//! Does a guest boot, run and end as it should?

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::guest::{self, Instruction, Program};
use lab::vmm::Machine;
use serde_json::json;

use crate::evidence::reached_user_space;
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "boot",
    applies: Site::is_patched,
    trials: trials![
        linux_reaches_user_space,
        typed_line_reaches_the_guest,
        guest_power_off_ends_the_vmm_with_success,
        elf_guest_boots_by_pvh,
    ],
};

/// More boots of Linux, where those are quick.
pub const VARIANTS: Suite = Suite {
    name: "boot",
    applies: |site| site.is_patched() && site.boots_quickly(),
    trials: trials![
        elf_kernel_boots_by_pvh_to_user_space,
        two_vcpus_come_up,
        guest_reset_boots_it_again,
        memory_zones_and_bound_vcpus_are_the_guests,
        guest_reads_the_names_it_was_given,
        firmware_boots_by_pvh_without_command_line_and_initramfs,
        flash_image_is_refused_with_what_would_work,
    ],
};

fn linux_reaches_user_space(site: &Site) -> Result<()> {
    let run = site.linux()?;
    ensure!(
        reached_user_space(&run.serial),
        "The console shows no init:\n{}",
        run.serial
    );
    Ok(())
}

fn typed_line_reaches_the_guest(site: &Site) -> Result<()> {
    let serial = &site.linux()?.serial;
    ensure!(
        serial.contains("@word go on"),
        "The guest did not get the line:\n{serial}"
    );
    Ok(())
}

fn guest_power_off_ends_the_vmm_with_success(site: &Site) -> Result<()> {
    let finished = &site.linux()?.finished;
    ensure!(
        finished.status.code() == Some(0),
        "The VMM ended with {}: {}",
        finished.status,
        finished.stderr
    );
    Ok(())
}

fn elf_guest_boots_by_pvh(site: &Site) -> Result<()> {
    let mut machine = site.boot_tiny(&Program::new().repeat(Instruction::Out(0x3f8), 5).halt())?;
    let serial = machine.wait_for_bytes(5, site.tiny_deadline())?;
    ensure!(serial == b".....", "The guest sent {serial:?}");
    Ok(())
}

fn elf_kernel_boots_by_pvh_to_user_space(site: &Site) -> Result<()> {
    let kernel = site.fresh_dir()?.join("vmlinux");
    fs::write(&kernel, guest::extract_vmlinux(&site.kernel())?)?;
    let mut machine = site.boot_linux_from(&kernel, "true", 1)?;
    let ended = machine.wait_for(guest::SCRIPT_END, site.linux_deadline());
    fs::remove_file(&kernel)?;
    ended.map(drop)
}

fn two_vcpus_come_up(site: &Site) -> Result<()> {
    let mut machine = site.boot_linux("echo \"@cpus $(nproc)\"", 2)?;
    let line = machine.wait_for("@cpus", site.linux_deadline())?;
    ensure!(line == "@cpus 2", "The guest says {line:?}");
    Ok(())
}

fn guest_reset_boots_it_again(site: &Site) -> Result<()> {
    let mut machine = site.boot_linux("sleep 1; reboot -f", 1)?;
    machine.wait_for(guest::UP, site.linux_deadline())?;
    machine.wait_for(guest::UP, site.linux_deadline())?;
    Ok(())
}

fn memory_zones_and_bound_vcpus_are_the_guests(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let script = "grep -h -e 'System RAM' /proc/iomem; grep MemTotal /proc/meminfo; nproc";
    let zone = dir.join("zone");
    let more = json!({
        "cpus": {
            "boot_vcpus": 2, "max_vcpus": 2,
            "affinity": [{"vcpu": 0, "host_cpus": [0]}, {"vcpu": 1, "host_cpus": [0]}],
        },
        "memory": {"size": 0, "zones": [
            {"id": "first", "size": 100 << 20},
            {"id": "second", "size": 92 << 20, "shared": true},
            {"id": "third", "size": 64 << 20, "file": zone, "shared": true, "host_numa_node": 0},
        ]},
    });
    let machine = boot_configured(site, &dir, script, more)?;
    let serial = fs::read_to_string(dir.join("serial.log"))?;
    // One range, though three zones lie behind it; two vCPUs.
    ensure!(
        serial.contains("00100000-0fffffff : System RAM") && serial.lines().any(|line| line == "2"),
        "The guest says:\n{serial}"
    );
    let held = fs::metadata(&zone)?;
    ensure!(
        held.len() == 64 << 20 && held.blocks() > 0,
        "The third zone's file has {} bytes, {} blocks of it used",
        held.len(),
        held.blocks()
    );
    let mut allowed = BTreeSet::new();
    for task in fs::read_dir(format!("/proc/{}/task", machine.pid()))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        if status.starts_with("Name:\tvcpu") {
            let cpus = status
                .lines()
                .find(|line| line.starts_with("Cpus_allowed_list"));
            allowed.insert(cpus.unwrap_or_default().to_owned());
        }
    }
    ensure!(
        allowed
            .iter()
            .map(String::as_str)
            .eq(["Cpus_allowed_list:\t0"]),
        "The vCPUs' threads: {allowed:?}"
    );
    fs::remove_file(&zone)?;
    Ok(())
}

fn guest_reads_the_names_it_was_given(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let script = "cd /sys/class/dmi/id; for f in sys_vendor product_name product_serial \
                  product_uuid chassis_asset_tag; do echo \"@$f $(cat $f)\"; done";
    let more = json!({"platform": {
        "system_manufacturer": "A maker", "system_serial_number": "SN 7",
        "system_uuid": "00112233-4455-6677-8899-aabbccddeeff", "chassis_asset_tag": "rack 3",
    }});
    boot_configured(site, &dir, script, more)?;
    let serial = fs::read_to_string(dir.join("serial.log"))?;
    for name in [
        "@sys_vendor A maker",
        "@product_serial SN 7",
        "@product_uuid 00112233-4455-6677-8899-aabbccddeeff",
        "@chassis_asset_tag rack 3",
    ] {
        ensure!(
            serial.lines().any(|line| line == name),
            "{name:?} is not in what the guest says:\n{serial}"
        );
    }
    Ok(())
}

/// A kernel's ELF image is entered in the same way; firmware that boots a
/// whole system is a trial of the Debian suite.
fn firmware_boots_by_pvh_without_command_line_and_initramfs(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let firmware = dir.join("firmware");
    fs::write(&firmware, guest::extract_vmlinux(&site.kernel())?)?;
    let mut machine = Machine::idle(&site.bin(), &dir)?;
    let config = json!({
        "payload": {
            "firmware": firmware, "initramfs": site.base_initramfs(), "cmdline": "console=ttyS0",
        },
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Off"},
    });
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    // It finds out about its CPU, which takes Linux some hundred of them.
    let deadline = Instant::now() + site.linux_deadline();
    while machine.stats()?.exits(site.numbers().cpuid) < 400 {
        ensure!(
            machine.is_running() && Instant::now() < deadline,
            "The guest comes to nothing: {}",
            machine.stderr()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let said = machine.serial().bytes();
    ensure!(said.is_empty(), "It has a command line: {said:?}");
    let told = machine.stderr();
    ensure!(told.contains("are ignored"), "The VMM said: {told}");
    fs::remove_file(&firmware)?;
    Ok(())
}

fn flash_image_is_refused_with_what_would_work(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let flash = dir.join("flash.fd");
    fs::write(&flash, vec![0xff; 1 << 20])?;
    let machine = Machine::idle(&site.bin(), &dir)?;
    let config = json!({"payload": {"firmware": flash}, "console": {"mode": "Off"}}).to_string();
    machine.must("PUT", "/api/v1/vm.create", Some(&config))?;
    let answer = machine.api("PUT", "/api/v1/vm.boot", None)?;
    ensure!(
        answer.status == 500 && answer.body.contains("PVH entry point is needed"),
        "{}: {}",
        answer.status,
        answer.body
    );
    Ok(())
}

/// Boots Linux by a configuration over the API, with these fields besides, and
/// waits for the end of its script.
fn boot_configured(
    site: &Site,
    dir: &Path,
    script: &str,
    more: serde_json::Value,
) -> Result<Machine> {
    let initramfs = dir.join("initramfs");
    guest::initramfs(&site.base_initramfs(), script, &initramfs)?;
    let mut config = json!({
        "payload": {
            "kernel": site.kernel(), "initramfs": initramfs,
            "cmdline": "console=ttyS0 quiet panic=-1 reboot=k mitigations=off tsc=reliable lpj=1000000",
        },
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Off"},
    });
    if let (Some(config), serde_json::Value::Object(more)) = (config.as_object_mut(), more) {
        config.extend(more);
    }
    let mut machine = Machine::idle(&site.bin(), dir)?;
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    machine.wait_for(guest::SCRIPT_END, site.linux_deadline())?;
    Ok(machine)
}
