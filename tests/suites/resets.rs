//! Every way in which a guest resets its machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::guest::{self, ResetWay};
use lab::vmm::{Machine, MachineSpec};

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "resets",
    applies: Site::is_patched,
    trials: trials![machine_is_reset_in_every_way_of_a_pc],
};

/// What takes Linux.
pub const LINUX: Suite = Suite {
    name: "resets",
    applies: |site| site.is_patched() && site.boots_quickly(),
    trials: trials![linux_resets_the_machine_in_every_way_that_it_has],
};

/// How often the machine is reset in each way.
const RESETS: u64 = 10;

/// A reset takes as long as a boot; a vCPU that is lost takes for ever.
const TINY_RESETS: Duration = Duration::from_secs(60);

fn machine_is_reset_in_every_way_of_a_pc(site: &Site) -> Result<()> {
    for way in ResetWay::ALL {
        let mut machine = site.boot_tiny(&way.image()?)?;
        let boots = machine
            .wait_for_bytes(1 + RESETS, TINY_RESETS)
            .with_context(|| format!("{way:?}"))?;
        ensure!(boots.iter().all(|&byte| byte == b'R'), "{way:?}: {boots:?}");
    }
    Ok(())
}

/// What the guest executes, and the kernel's `reboot=` option: first what a guest
/// does that was told nothing, by itself and in a panic.
pub const LINUX_WAYS: [(&str, &str); 9] = [
    ("reboot -f", ""),
    ("echo c > /proc/sysrq-trigger", ""),
    ("reboot -f", "reboot=acpi"),
    ("reboot -f", "reboot=kbd"),
    ("reboot -f", "reboot=triple"),
    ("reboot -f", "reboot=bios"),
    ("reboot -f", "reboot=pci"),
    ("reboot -f", "reboot=efi"),
    ("echo b > /proc/sysrq-trigger", ""),
];
/// How many of them a short run tries.
const SHORT: usize = 2;

/// A Linux guest that is told `option`, and nothing else about resets.
pub fn linux(kernel: &Path, initramfs: &Path, option: &str) -> MachineSpec {
    MachineSpec {
        cmdline: Some(format!(
            "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable lpj=1000000 {option}"
        )),
        ..MachineSpec::linux(kernel, initramfs, 2)
    }
}

fn linux_resets_the_machine_in_every_way_that_it_has(site: &Site) -> Result<()> {
    let ways = if site.is_long() {
        LINUX_WAYS.len()
    } else {
        SHORT
    };
    let resets = site.resets() as u64;
    for (command, option) in &LINUX_WAYS[..ways] {
        let dir = site.fresh_dir()?;
        let initramfs = dir.join("initramfs");
        guest::initramfs(&site.base_initramfs(), command, &initramfs)?;
        let spec = linux(&site.kernel(), &initramfs, option);
        let mut machine = Machine::boot(&site.bin(), &dir, &spec)?;
        machine
            .wait_for_nth(guest::UP, 1 + resets, site.linux_deadline() * 3)
            .with_context(|| format!("{command}, {option:?}"))?;
    }
    Ok(())
}
