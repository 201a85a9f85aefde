//! The modules go and come back, and what they are told as they load.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use instrumentation::table::Isa;
use lab::command::{command, output};
use lab::guest::{CpuidQuery, CpuidReading, Instruction, Program, readings};
use lab::oracle::DebugfsTable;
use lab::vmm::Machine;
use rustix::system::finit_module;

use crate::keeper;
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "modules",
    applies: can_be_swapped,
    trials: trials![
        modules_stay_while_a_vm_lives,
        counts_start_from_zero_when_modules_come_back,
        accounting_that_is_off_at_load_counts_nothing_until_switched_on,
        leaves_that_are_off_at_load_are_kvms_own,
        parameter_that_can_only_be_read_is_ignored_at_load,
        modules_of_two_builds_do_not_mix,
    ],
};

/// Whether the host is ours alone and has no VM that stays.
pub fn can_be_swapped(site: &Site) -> bool {
    site.is_patched() && !site.is_shared() && keeper::process().is_none()
}

const UNDEFINED_REASON: CpuidQuery = CpuidQuery {
    leaf: 0x4fff_fffd,
    subleaf: 35,
};
const UNDEFINED: CpuidReading = CpuidReading {
    eax: 0,
    ebx: 0,
    ecx: 0,
    edx: u32::MAX,
};

fn vendor(site: &Site) -> &'static str {
    match site.isa() {
        Isa::Vmx => "kvm-intel",
        Isa::Svm => "kvm-amd",
    }
}

fn unload(module: &str) -> Result<()> {
    output(&mut command("rmmod", [module.replace('-', "_")])).map(drop)
}

fn load(site: &Site, module: &str, parameters: &[&str]) -> Result<()> {
    let file: PathBuf = site.module(module);
    output(command("insmod", [file]).args(parameters)).map(drop)
}

/// Modules with other parameters than usual; the usual ones come back at the end.
pub struct Swapped<'a>(&'a Site);

impl<'a> Swapped<'a> {
    pub fn new(site: &'a Site, kvm: &[&str], of_vendor: &[&str]) -> Result<Self> {
        swap(site, kvm, of_vendor)?;
        Ok(Swapped(site))
    }
}

impl Drop for Swapped<'_> {
    fn drop(&mut self) {
        if let Err(error) = swap(self.0, &[], &[]) {
            println!("The modules are not back: {error:#}");
        }
    }
}

fn swap(site: &Site, kvm: &[&str], of_vendor: &[&str]) -> Result<()> {
    // The last VM's process may still be on its way out.
    let mut last = Ok(());
    for _ in 0..50 {
        last = unload(vendor(site));
        if last.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    last?;
    unload("kvm")?;
    load(site, "kvm", kvm)?;
    load(site, vendor(site), of_vendor)
}

fn parameter(name: &str) -> Result<String> {
    let path = format!("/sys/module/kvm/parameters/{name}");
    let value = fs::read_to_string(&path).with_context(|| format!("Cannot read {path}"))?;
    Ok(value.trim().to_owned())
}

/// A guest of a few exits that has halted.
fn halted(site: &Site) -> Result<Machine> {
    let program = Program::new()
        .repeat(Instruction::Cpuid, 50)
        .ask(&[UNDEFINED_REASON])
        .report(1);
    let mut machine = site.boot_tiny(&program.halt())?;
    machine.wait_for_bytes(Program::report_writes(1), site.tiny_deadline())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    Ok(machine)
}

fn modules_stay_while_a_vm_lives(site: &Site) -> Result<()> {
    let machine = site.boot_tiny(&Program::new().ask_for_ever())?;
    let before = machine.stats()?;
    for module in [vendor(site), "kvm"] {
        ensure!(
            unload(module).is_err(),
            "{module} went away under a running VM"
        );
    }
    std::thread::sleep(Duration::from_millis(100));
    let after = machine.stats()?;
    ensure!(
        after.at_least(&before) && after.totals.exits > before.totals.exits,
        "The guest does not go on: {:?}, then {:?}",
        before.totals,
        after.totals
    );
    Ok(())
}

fn counts_start_from_zero_when_modules_come_back(site: &Site) -> Result<()> {
    drop(halted(site)?);
    swap(site, &[], &[])?;
    let own = fs::read_to_string("/sys/kernel/debug/kvm/exits").context("No debugfs of KVM's")?;
    ensure!(own.trim() == "0", "KVM itself remembers {own}");
    let first = CpuidQuery {
        leaf: 0x4fff_fffd,
        subleaf: site.numbers().cpuid,
    };
    let reading = site.ask(&[first])?[0];
    ensure!(reading.eax == 1, "The first CPUID reads {reading:?}");
    Ok(())
}

fn accounting_that_is_off_at_load_counts_nothing_until_switched_on(site: &Site) -> Result<()> {
    let _back = Swapped::new(site, &["exit_stats=0"], &[])?;
    ensure!(parameter("exit_stats")? == "N", "It is on");
    let machine = halted(site)?;
    let table = DebugfsTable::of_process(machine.pid())?;
    ensure!(
        table.own > 50 && table.exits == 0 && table.life() == 0,
        "Switched off: {table:?}"
    );
    let reading = readings(&machine.serial().bytes(), 1)?[0];
    ensure!(reading != UNDEFINED, "The leaves answer: {reading:x?}");
    drop(machine);

    fs::write("/sys/module/kvm/parameters/exit_stats", "1").context("Cannot switch it on")?;
    let machine = halted(site)?;
    let table = DebugfsTable::of_process(machine.pid())?;
    ensure!(
        table.exits == table.own && table.life() > 0,
        "Switched on: {table:?}"
    );
    Ok(())
}

fn leaves_that_are_off_at_load_are_kvms_own(site: &Site) -> Result<()> {
    let _back = Swapped::new(site, &["exit_stats_guest=0"], &[])?;
    ensure!(parameter("exit_stats_guest")? == "N", "They are on");
    let machine = halted(site)?;
    let reading = readings(&machine.serial().bytes(), 1)?[0];
    ensure!(reading != UNDEFINED, "The leaves answer: {reading:x?}");
    let table = DebugfsTable::of_process(machine.pid())?;
    ensure!(
        table.exits == table.own,
        "The host counts all the same: {table:?}"
    );
    Ok(())
}

fn parameter_that_can_only_be_read_is_ignored_at_load(site: &Site) -> Result<()> {
    let usual = parameter("exit_stats_handled")?;
    for given in ["exit_stats_handled=1", "exit_stats_handled"] {
        let _back = Swapped::new(site, &[given], &[])?;
        ensure!(
            parameter("exit_stats_handled")? == usual,
            "{given} changed something"
        );
    }
    Ok(())
}

/// Neither symbol versions nor the version's name may be what keeps them apart:
/// not every kernel has the former, and both can be overridden.
fn modules_of_two_builds_do_not_mix(site: &Site) -> Result<()> {
    let vendor = vendor(site);
    unload(vendor)?;
    unload("kvm")?;
    let mixes = [
        (site.module("kvm"), site.stock_module(vendor)),
        (site.stock_module("kvm"), site.module(vendor)),
    ];
    let mut loaded = Vec::new();
    for (kvm, of_vendor) in &mixes {
        output(&mut command("insmod", [kvm]))?;
        if force(of_vendor).is_ok() {
            loaded.push(of_vendor);
            unload(vendor)?;
        }
        unload("kvm")?;
    }
    load(site, "kvm", &[])?;
    load(site, vendor, &[])?;
    ensure!(
        loaded.is_empty(),
        "On another build's kvm.ko loads {loaded:?}"
    );
    Ok(())
}

/// Loads a module whatever versions it names.
fn force(module: &Path) -> Result<()> {
    const IGNORE_VERSIONS: std::ffi::c_int = 1 | 2;
    let file = fs::File::open(module)?;
    finit_module(file, c"", IGNORE_VERSIONS)?;
    Ok(())
}
