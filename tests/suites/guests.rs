//! Guests beside the lab's own Linux: memory tests, firmware, and every kernel
//! flavour that Debian ships. Each is booted, seen at work, and resets the
//! machine in the ways that it has.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::artifact::payloads::IN_HOST;
use lab::guest;
use lab::vmm::{Machine, MachineSpec, Serial};

use crate::cpus::linux_counts_and_reaches_cpus_whose_ids_a_byte_has_no_room_for;
use crate::resets;
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "guests",
    applies: |site| has_payloads(site) && !site.counts_time(),
    trials: trials![
        memory_tests_run_on_the_serial_console_and_reset_the_machine,
        cloud_kernels_reset_the_machine_in_every_way,
    ],
};

/// On a host whose clock counts instructions: QEMU 7.2 does not bear EDK2 as a
/// guest of its guest on any other.
pub const FIRMWARE: Suite = Suite {
    name: "guests_firmware",
    applies: |site| has_payloads(site) && site.counts_time(),
    trials: trials![firmware_resets_the_machine_by_either_flag],
};

/// The kernels of a long run.
pub const LONG: Suite = Suite {
    name: "guests",
    applies: |site| (SUITE.applies)(site) && site.is_long(),
    trials: trials![
        generic_kernels_reset_the_machine_in_every_way,
        realtime_kernels_reset_the_machine_in_every_way,
        linux_counts_and_reaches_cpus_whose_ids_a_byte_has_no_room_for,
    ],
};

/// How long a payload may take to get somewhere on a busy machine. A long run has
/// the whole night, and others at work beside it.
fn step_timeout(site: &Site) -> Duration {
    Duration::from_secs(if site.is_long() { 1200 } else { 240 })
}

fn has_payloads(site: &Site) -> bool {
    site.is_patched() && Path::new(IN_HOST).exists()
}

fn payloads(prefix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(IN_HOST).context("No payloads")? {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The title of memtest86+'s screen, and one of its longer tests, which it gets to
/// once it has found a clock and measured with it.
const MEMTEST_UP: &str = "Memtest86+ v";
const MEMTEST_WORKS: &str = "[Moving inversions, ";
/// Both CPUs test. 6.10 finds them through local APICs in xAPIC mode only.
const MEMTEST_SMP: &str = "SMP: 2T (PAR)";

fn memory_tests_run_on_the_serial_console_and_reset_the_machine(site: &Site) -> Result<()> {
    let mut tests = payloads("memtest86-")?;
    ensure!(tests.len() == 2, "{tests:?}");
    if !site.is_long() {
        // The older one asks for more: it knows no x2APIC mode.
        tests.truncate(1);
    }
    for test in tests {
        let spec = MachineSpec {
            cmdline: Some("console=ttyS0,115200".into()),
            vcpus: 2,
            serial: Serial::Terminal,
            ..MachineSpec::tiny(&test)
        };
        let mut machine = Machine::boot(&site.bin(), &site.fresh_dir()?, &spec)?;
        for boot in 1..=1 + site.resets() {
            machine
                .wait_for_after((MEMTEST_UP, boot), MEMTEST_WORKS, step_timeout(site))
                .with_context(|| format!("{}, boot {boot}", test.display()))?;
            machine
                .wait_for_after((MEMTEST_UP, boot), MEMTEST_SMP, step_timeout(site))
                .with_context(|| format!("{}, boot {boot}", test.display()))?;
            // The escape key means a reset to it.
            machine.type_text("\x1b")?;
        }
        machine.shut_down()?;
    }
    Ok(())
}

/// What EDK2 says when it has found no disk to start from.
const FIRMWARE_UP: &str = "Press any key to enter the Boot Manager Menu";
/// The last line of its menu; above it are two entries, the last one its shell.
const MENU_UP: &str = "ESC to exit";
const LAST_ENTRY: &str = "\x1b[A\r";
/// The shell waits five seconds, reading the timer all the time, unless a key ends
/// that.
const SHELL_WAITS: &str = "seconds to skip";
const SHELL_UP: &str = "Shell> ";
/// What its shell has to reset the machine, cold and warm, and to power it off.
const SHELL_RESETS: [&str; 2] = ["reset -c\r", "reset -w\r"];
const SHELL_POWER_OFF: &str = "reset -s\r";

fn firmware_resets_the_machine_by_either_flag(site: &Site) -> Result<()> {
    let firmware = Path::new(IN_HOST).join("firmware");
    for flag in ["--firmware", "--kernel"] {
        let spec = MachineSpec {
            firmware: flag == "--firmware",
            memory_mib: 256,
            ..MachineSpec::firmware(&firmware)
        };
        let mut machine = Machine::boot(&site.bin(), &site.fresh_dir()?, &spec)?;
        let resets = SHELL_RESETS
            .iter()
            .flat_map(|way| std::iter::repeat_n(way, site.resets()));
        for (boot, way) in (1..).zip(resets.chain([&SHELL_POWER_OFF])) {
            let mark = (FIRMWARE_UP, boot);
            let steps = [
                ("", " "),
                (MENU_UP, LAST_ENTRY),
                (SHELL_WAITS, "\r"),
                (SHELL_UP, way),
            ];
            for (shown, keys) in steps {
                machine
                    .wait_for_after(mark, shown, step_timeout(site))
                    .with_context(|| format!("By {flag}, boot {boot}"))?;
                machine.type_text(keys)?;
            }
            println!("Boot {boot} by {flag}, then {}", way.trim_end());
        }
        let end = machine.wait_for_end()?;
        ensure!(end.status.success(), "By {flag}: {end:?}");
    }
    Ok(())
}

fn cloud_kernels_reset_the_machine_in_every_way(site: &Site) -> Result<()> {
    kernels(site, |name| name.contains("-cloud-"))
}

fn generic_kernels_reset_the_machine_in_every_way(site: &Site) -> Result<()> {
    kernels(site, |name| {
        !name.contains("-cloud-") && !name.contains("-rt-")
    })
}

fn realtime_kernels_reset_the_machine_in_every_way(site: &Site) -> Result<()> {
    kernels(site, |name| name.contains("-rt-"))
}

/// All kernels in one way before the next: a run that is interrupted has seen each.
fn kernels(site: &Site, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut found = Vec::new();
    for kernel in payloads("kernel-")? {
        let name = kernel.file_name().unwrap_or_default().to_string_lossy();
        let release = name.trim_start_matches("kernel-vmlinuz-").to_owned();
        if wanted(&name) {
            found.push((kernel, release));
        }
    }
    ensure!(!found.is_empty(), "There is no such kernel");
    let ways = if site.is_long() {
        &resets::LINUX_WAYS[..]
    } else {
        &resets::LINUX_WAYS[..1]
    };
    for (command, option) in ways {
        for (kernel, release) in &found {
            let script = format!("echo @kernel $(uname -r); {command}");
            let dir = site.fresh_dir()?;
            let initramfs = dir.join("initramfs");
            guest::initramfs(&site.base_initramfs(), &script, &initramfs)?;
            let spec = resets::linux(kernel, &initramfs, option);
            let mut machine = Machine::boot(&site.bin(), &dir, &spec)?;
            let mark = format!("@kernel {release}");
            let resets = site.resets();
            machine
                .wait_for_nth(
                    &mark,
                    1 + resets as u64,
                    step_timeout(site) * (1 + resets as u32),
                )
                .with_context(|| format!("{release}, {command}, {option:?}"))?;
            println!("{release} has reset the machine: {resets} times {command} {option}");
        }
    }
    Ok(())
}
