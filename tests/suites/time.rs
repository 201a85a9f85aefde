//! Is every tick of a vCPU's life in exactly one place?

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::guest::{Instruction, ManyExits, Program};
use lab::oracle::{DebugfsTable, Lives, thread_named};

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "time",
    applies: Site::is_patched,
    trials: trials![
        four_places_are_the_life_of_a_vcpu_that_halts,
        four_places_are_the_life_of_a_vcpu_that_computes,
        four_places_are_the_life_of_a_vcpu_that_exits,
        four_places_are_the_life_of_a_vcpu_that_talks_to_a_device,
    ],
};

fn four_places_are_the_life_of_a_vcpu_that_halts(site: &Site) -> Result<()> {
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

fn four_places_are_the_life_of_a_vcpu_that_computes(site: &Site) -> Result<()> {
    let table = life(site, &Program::new().spin())?;
    ensure!(
        table.guest > table.life() / 2 && table.blocked == 0,
        "It only computed: {table:?}"
    );
    Ok(())
}

fn four_places_are_the_life_of_a_vcpu_that_exits(site: &Site) -> Result<()> {
    let table = life(site, &Program::new().ask_for_ever())?;
    ensure!(
        table.cycles > table.userspace && table.blocked == 0,
        "It stayed in the kernel: {table:?}"
    );
    Ok(())
}

fn four_places_are_the_life_of_a_vcpu_that_talks_to_a_device(site: &Site) -> Result<()> {
    let program = Program::new().repeat(Instruction::In(0x80), u32::MAX);
    let table = life(site, &program.spin())?;
    ensure!(
        // How much each takes is the emulator's and its machine's affair.
        table.userspace > table.life() / 8 && table.blocked == 0,
        "It was served in user space: {table:?}"
    );
    Ok(())
}

/// Runs a guest for a while, holds the sum of the four places against the time
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
        (stats.exits, stats.cycles, stats.blocked, stats.userspace)
            == (table.exits, table.cycles, table.blocked, table.userspace),
        "REST gives {stats:?}, debugfs {table:?}"
    );
    Ok(table)
}
