//! Does a VM see its own exits only?

use anyhow::{Context, Result, ensure};
use lab::guest::{CpuidQuery, Instruction, Program, readings};
use lab::oracle::{ExitHistogram, thread_named};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "isolation",
    applies: Site::is_patched,
    trials: trials![
        two_vms_never_see_each_others_exits,
        new_vm_inherits_nothing_from_one_that_ended,
    ],
};

/// What takes a second CPU.
pub const MOVING: Suite = Suite {
    name: "isolation",
    applies: |site| site.is_patched() && cpus() > 1,
    trials: trials![figures_only_grow_while_a_vcpu_moves_between_cpus],
};

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn figures_only_grow_while_a_vcpu_moves_between_cpus(site: &Site) -> Result<()> {
    let machine = site.boot_tiny(&Program::new().ask_for_ever())?;
    let thread = thread_named(machine.pid(), "vcpu0")?;
    let mut before = machine.stats()?;
    for round in 0..100 {
        let mut only = CpuSet::new();
        only.set(round % 2);
        let thread = Pid::from_raw(thread.try_into()?);
        sched_setaffinity(thread, &only).context("Cannot move the vCPU")?;
        let now = machine.stats()?;
        ensure!(
            now.at_least(&before),
            "Move {round}: {:?}, then {:?}",
            before.totals,
            now.totals
        );
        before = now;
    }
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let stats = machine.stats()?;
    ensure!(
        stats.totals.exits == machine.debugfs_exits()? && stats.sum() == stats.totals,
        "Not KVM's own total: {:?}",
        stats.totals
    );
    Ok(())
}

fn two_vms_never_see_each_others_exits(site: &Site) -> Result<()> {
    let cpuid = site.numbers().cpuid;
    let own = CpuidQuery {
        leaf: 0x4fff_fffd,
        subleaf: cpuid,
    };
    let histogram = ExitHistogram::start()?;
    // A third one keeps asking, so that there is always something to mix in.
    let noise = site.boot_tiny(&Program::new().ask_for_ever())?;
    let counts = [2000, 5000];
    let mut machines = Vec::new();
    for count in counts {
        let program = Program::new()
            .repeat(Instruction::Cpuid, count)
            .ask(&[own])
            .report(1)
            .halt();
        machines.push(site.boot_tiny(&program)?);
    }
    for (machine, count) in machines.iter_mut().zip(counts) {
        let bytes = Program::report_writes(1);
        let serial = machine.wait_for_bytes(bytes, site.tiny_deadline())?;
        let inside = readings(&serial, 1)?[0].eax;
        machine.wait_until_silent(site.tiny_deadline())?;
        let stats = machine.stats()?;
        ensure!(
            inside == count + 1,
            "{count} executed, {inside} read in the guest"
        );
        ensure!(
            stats.exits(cpuid) == u64::from(inside),
            "REST says {}",
            stats.exits(cpuid)
        );
        ensure!(
            stats.totals.exits == machine.debugfs_exits()?,
            "Not this VM's own total"
        );
        let traced = histogram.of_process(machine.pid())?;
        ensure!(
            stats.occurred() == traced,
            "{:?}, traced {traced:?}",
            stats.occurred()
        );
    }
    let asked = noise.stats()?.exits(cpuid);
    ensure!(asked > 0, "The third VM did nothing");
    Ok(())
}

fn new_vm_inherits_nothing_from_one_that_ended(site: &Site) -> Result<()> {
    let cpuid = site.numbers().cpuid;
    let mut first = site.boot_tiny(
        &Program::new()
            .repeat(Instruction::Cpuid, 777)
            .report(0)
            .halt(),
    )?;
    first.wait_for_bytes(1, site.tiny_deadline())?;
    first.kill()?;
    let reading = site.ask(&[CpuidQuery {
        leaf: 0x4fff_fffd,
        subleaf: cpuid,
    }])?[0];
    ensure!(
        reading.eax == 1,
        "The new VM's first CPUID reads {reading:?}"
    );
    Ok(())
}
