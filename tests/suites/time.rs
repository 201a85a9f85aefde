//! Is every tick of a vCPU's life in exactly one place?

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::guest::{Instruction, ManyExits, Program};
use lab::oracle::{DebugfsTable, Lives, Thread, thread_named, vcpu_threads};
use lab::vmm::{Counters, Machine};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "time",
    applies: Site::is_patched,
    trials: trials![
        five_places_are_the_life_of_a_vcpu_that_halts,
        five_places_are_the_life_of_a_vcpu_that_computes,
        five_places_are_the_life_of_a_vcpu_that_exits,
        five_places_are_the_life_of_a_vcpu_that_talks_to_a_device,
    ],
};

fn five_places_are_the_life_of_a_vcpu_that_halts(site: &Site) -> Result<()> {
    let work = ManyExits {
        halts: 100,
        timer: 2_000_000,
        ..ManyExits::nothing(1, 1000)
    };
    let table = life(site, &work.image(site.isa())?)?;
    ensure!(
        table.blocked > table.life() / 2,
        "It slept all the time: {table:?}"
    );
    Ok(())
}

fn five_places_are_the_life_of_a_vcpu_that_computes(site: &Site) -> Result<()> {
    let table = life(site, &Program::new().spin())?;
    ensure!(
        table.guest > table.life() / 2 && table.blocked == 0,
        "It only computed: {table:?}"
    );
    Ok(())
}

fn five_places_are_the_life_of_a_vcpu_that_exits(site: &Site) -> Result<()> {
    let table = life(site, &Program::new().ask_for_ever())?;
    ensure!(
        table.cycles > table.userspace && table.blocked == 0,
        "It stayed in the kernel: {table:?}"
    );
    Ok(())
}

fn five_places_are_the_life_of_a_vcpu_that_talks_to_a_device(site: &Site) -> Result<()> {
    let program = Program::new().repeat(Instruction::In(0x80), u32::MAX);
    let table = life(site, &program.spin())?;
    ensure!(
        // How much each takes is the emulator's and its machine's affair.
        table.userspace > table.life() / 8 && table.blocked == 0,
        "It was served in user space: {table:?}"
    );
    Ok(())
}

/// What takes a scheduler's time slice many times over.
pub const SHARED_CPU: Suite = Suite {
    name: "time",
    applies: |site| site.is_patched() && site.boots_quickly(),
    trials: trials![time_that_another_task_takes_is_preempted_time],
};

/// Two guests that only compute share one CPU: what each waits for the other is
/// what the scheduler says that its thread waited, and no exit's cost.
///
/// Read while they run: both figures grow when a thread gets the CPU again, and
/// whoever reads has it. Nobody is woken in between, whose wait would be sleep.
fn time_that_another_task_takes_is_preempted_time(site: &Site) -> Result<()> {
    let guest = Program::new().spin();
    let machines = [site.boot_tiny(&guest)?, site.boot_tiny(&guest)?];
    let mut only = CpuSet::new();
    only.set(0);
    for machine in &machines {
        let thread = thread_named(machine.pid(), "vcpu0")?;
        let thread = Pid::from_raw(thread.try_into()?);
        sched_setaffinity(thread, &only).context("Cannot move the vCPU")?;
    }
    let read = || -> Result<[_; 2]> {
        let [first, second] = &machines;
        Ok([waits(first)?, waits(second)?])
    };
    std::thread::sleep(Duration::from_secs(1));
    let before = read()?;
    std::thread::sleep(Duration::from_secs(6));
    let after = read()?;
    for ((table, thread), (table_before, thread_before)) in after.iter().zip(&before) {
        let ticks = table.preempted - table_before.preempted;
        let preempted = Duration::from_nanos(ticks * 1_000_000 / table.tsc_khz);
        let waited = thread.waited - thread_before.waited;
        let slices = thread.preemptions - thread_before.preemptions;
        let wakeups = thread.waits - thread_before.waits;
        ensure!(
            slices > 20 && wakeups == 0 && preempted.abs_diff(waited) <= waited / 100,
            "The scheduler says {waited:?} in {slices} slices, we say {preempted:?}, \
             {wakeups} wake-ups"
        );
        ensure!(
            table.cycles - table_before.cycles < ticks / 4,
            "Exits cost as much as the other guest: {table:?}"
        );
    }
    Ok(())
}

/// A guest's figures, and the scheduler's of its vCPU's thread.
fn waits(machine: &Machine) -> Result<(DebugfsTable, Thread)> {
    let table = DebugfsTable::of_process(machine.pid())?;
    let [thread] = &vcpu_threads(machine.pid())?[..] else {
        anyhow::bail!("Not one vCPU");
    };
    Ok((table, thread.clone()))
}

/// Runs a guest for a while, holds the sum of the five places against the time
/// between the vCPU's first entry and its last return, and hands the figures on.
pub fn life(site: &Site, image: &[u8]) -> Result<DebugfsTable> {
    let lives = Lives::start()?;
    let machine = site.boot_tiny(image)?;
    // Bochs executes a second's worth of instructions in half a minute.
    let span = if site.boots_quickly() { 300 } else { 100 };
    std::thread::sleep(Duration::from_millis(span));
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let thread = thread_named(machine.pid(), "vcpu0")?;
    let (first, last) = lives.of_thread(thread)?;
    let table = DebugfsTable::of_process(machine.pid())?;
    let (lived, booked) = (last - first, table.life());
    ensure!(
        lived.abs_diff(booked) <= lived / 100,
        "The vCPU lived {lived} ticks, {booked} are booked: {table:?}"
    );
    ensure!(
        table.own == table.exits,
        "KVM counts other exits: {table:?}"
    );
    let stats = machine.stats()?.totals;
    ensure!(
        stats
            == Counters {
                exits: table.exits,
                cycles: table.cycles,
                blocked: table.blocked,
                userspace: table.userspace,
                preempted: table.preempted,
            },
        "REST gives {stats:?}, debugfs {table:?}"
    );
    Ok(table)
}
