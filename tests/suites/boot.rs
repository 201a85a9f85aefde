//! Does a guest boot, run and end as it should?

use std::fs;

use anyhow::{Result, ensure};
use lab::guest::{self, Instruction, Program};

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
