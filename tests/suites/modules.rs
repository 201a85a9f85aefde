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

use crate::keep_vm;
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "modules",
    applies: can_be_swapped,
    trials: trials![
        modules_stay_while_a_vm_lives,
        counts_start_from_zero_when_modules_come_back,
        accounting_that_is_off_at_load_counts_nothing_until_switched_on,
        every_view_says_that_counting_is_off_while_it_is,
        a_vm_booted_while_counting_was_off_is_judged_at_each_reading,
        leaves_that_are_off_at_load_are_kvms_own,
        parameter_that_can_only_be_read_is_ignored_at_load,
        modules_of_two_builds_do_not_mix,
    ],
};

/// Whether the host is ours alone and has no VM that stays.
pub fn can_be_swapped(site: &Site) -> bool {
    site.is_patched() && !site.is_shared() && keep_vm::process().is_none()
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

/// Counting, off until this ends.
pub struct CountingOff;

impl CountingOff {
    pub fn now() -> Result<Self> {
        switch_counting("0")?;
        Ok(CountingOff)
    }
}

impl Drop for CountingOff {
    fn drop(&mut self) {
        if let Err(error) = switch_counting("1") {
            println!("Counting is not on again: {error:#}");
        }
    }
}

fn switch_counting(value: &str) -> Result<()> {
    fs::write("/sys/module/kvm/parameters/exit_stats", value).context("Cannot switch counting")
}

/// Every view while counting is off: none shows counters that stand still.
fn says_that_counting_is_off(machine: &Machine, earlier: &str) -> Result<()> {
    let shown = machine.ch_remote_text(&["exit-stats"])?;
    ensure!(
        shown.contains("Counting is off") && !shown.contains("CPUID  "),
        "While it is off:\n{shown}"
    );
    let body = machine.must("GET", "/exit-stats", None)?.json()?;
    let (exits, own) = (&body["totals"]["exits"], &body["totals"]["kvm_exits"]);
    ensure!(
        body["reasons"].is_null() && body["source"] == "kvm" && exits == own,
        "While it is off: {body}"
    );
    let metrics = machine.must("GET", "/metrics", None)?.body;
    ensure!(
        !metrics.contains("kvm_exits_total{") && metrics.contains("kvm_vcpu_exits_total{"),
        "While it is off:\n{metrics}"
    );
    let difference = machine.ch_remote(&["exit-stats", "--since", earlier])?;
    let said = String::from_utf8_lossy(&difference.stderr).into_owned();
    ensure!(
        !difference.status.success() && said.contains("switched on or off"),
        "A difference over the switch: {said:?}"
    );
    Ok(())
}

fn every_view_says_that_counting_is_off_while_it_is(site: &Site) -> Result<()> {
    let machine = site.boot_tiny(&Program::new().ask_for_ever())?;
    let earlier = site.fresh_dir()?.join("earlier.json");
    let json = machine.ch_remote_text(&["exit-stats", "--format", "json"])?;
    fs::write(&earlier, json).context("Cannot write a snapshot")?;
    let earlier = earlier.to_string_lossy().into_owned();
    let since = |machine: &Machine| machine.ch_remote(&["exit-stats", "--since", &earlier]);
    let difference = String::from_utf8_lossy(&since(&machine)?.stdout).into_owned();
    ensure!(
        difference.contains("Exits/s") && difference.contains("CPUID"),
        "A difference:\n{difference}"
    );

    let off = CountingOff::now()?;
    std::thread::sleep(Duration::from_millis(300));
    says_that_counting_is_off(&machine, &earlier)?;
    drop(off);
    let body = machine.must("GET", "/exit-stats", None)?.json()?;
    ensure!(
        body["totals"]["uncounted_exits"].as_u64() > Some(0) && body["reasons"].is_array(),
        "After it was off: {}",
        body["totals"]
    );
    let shown = machine.ch_remote_text(&["exit-stats"])?;
    ensure!(
        shown.contains("were not counted by reason") && shown.contains("CPUID"),
        "After it was off:\n{shown}"
    );

    // Another boot on the same socket: its counters may be above the earlier ones.
    machine.must("PUT", "/api/v1/vm.reboot", None)?;
    std::thread::sleep(Duration::from_millis(500));
    let refused = since(&machine)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && said.contains("different boots"),
        "A difference of two boots: {said:?}"
    );
    machine.must("PUT", "/api/v1/vm.shutdown", None)?;
    let shown = machine.ch_remote_text(&["exit-stats"])?;
    ensure!(
        shown.contains("The VM has ended"),
        "After its end:\n{shown}"
    );
    Ok(())
}

fn a_vm_booted_while_counting_was_off_is_judged_at_each_reading(site: &Site) -> Result<()> {
    let off = CountingOff::now()?;
    let machine = site.boot_tiny(&Program::new().ask_for_ever())?;
    let shown = machine.ch_remote_text(&["exit-stats"])?;
    ensure!(
        shown.contains("Counting is off"),
        "Booted while off:\n{shown}"
    );
    drop(off);
    std::thread::sleep(Duration::from_millis(200));
    let shown = machine.ch_remote_text(&["exit-stats"])?;
    ensure!(
        shown.contains("CPUID") && shown.contains("were not counted by reason"),
        "Booted while off, then on:\n{shown}"
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
