//! A VM whose every part is made anew of its saved state, again and again, while
//! its guest works.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::guest::{Instruction, Program};
use lab::oracle::{ExitHistogram, same_exits};
use lab::vmm::Machine;
use serde_json::json;

use crate::site::Site;
use crate::unrest::{self, Tap, Unrest};
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "pulse",
    applies: |site| site.is_patched() && !site.is_shared(),
    trials: trials![exits_are_counted_on_to_the_exit_through_pulses],
};

/// With all devices, where that is quick.
pub const LINUX: Suite = Suite {
    name: "pulse",
    applies: |site| site.is_patched() && site.boots_quickly() && !site.is_shared(),
    trials: trials![
        linux_on_one_vcpu_works_on_through_pulses,
        linux_on_four_vcpus_works_on_through_pulses,
    ],
};

const TAP: Tap = Tap {
    name: "pulse0",
    host: "192.168.82.1",
    guest: "192.168.82.2",
    host_mac: "02:aa:bb:cc:dd:82",
};

/// What is written to the disk and read back.
const DATA: u32 = 1 << 20;

fn pulse(machine: &Machine) -> Result<()> {
    machine.must("PUT", "/api/v1/vm.pulse", None).map(drop)
}

fn exits_are_counted_on_to_the_exit_through_pulses(site: &Site) -> Result<()> {
    const ASKED: u32 = 20_000;
    let image = Program::new()
        .repeat(Instruction::Cpuid, ASKED)
        .repeat(Instruction::Out(0x3f8), 1)
        .halt();
    let histogram = ExitHistogram::start()?;
    let mut machine = site.boot_tiny(&image)?;
    let mut before = machine.stats()?;
    let mut pulses = 0;
    while machine.serial().bytes().is_empty() || pulses < 3 {
        pulse(&machine)?;
        pulses += 1;
        let now = machine.stats()?;
        ensure!(
            now.at_least(&before),
            "Pulse {pulses}: {:?}, then {:?}",
            before.totals,
            now.totals
        );
        before = now;
        // Where a pulse takes long, the guest would come to nothing else.
        sleep(Duration::from_millis(20));
        ensure!(pulses < 1000, "The guest does not come to its end");
    }
    machine.wait_for_bytes(1, site.tiny_deadline())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let stats = machine.stats()?;
    let counted = stats.exits(site.numbers().cpuid);
    ensure!(
        counted == u64::from(ASKED),
        "{ASKED} executed through {pulses} pulses, {counted} counted"
    );
    same_exits(&stats.occurred(), &histogram.of_all()?)?;
    let own = machine.debugfs_exits()?;
    ensure!(
        stats.totals.exits == own,
        "{:?}, and KVM's own count is {own}",
        stats.totals
    );
    Ok(())
}

fn linux_on_one_vcpu_works_on_through_pulses(site: &Site) -> Result<()> {
    linux_works_on(site, 1)
}

fn linux_on_four_vcpus_works_on_through_pulses(site: &Site) -> Result<()> {
    linux_works_on(site, 4)
}

fn linux_works_on(site: &Site, vcpus: u32) -> Result<()> {
    // Twice a second: seconds, minutes in a long run.
    let pulses = if site.is_long() { 400 } else { 8 };
    let histogram = ExitHistogram::start()?;
    let mut guest = unrest::boot(site, &TAP, 16 << 20, |_| {
        json!({
            "cpus": {"boot_vcpus": vcpus, "max_vcpus": vcpus},
            "balloon": {"size": 16 << 20},
            "watchdog": true,
        })
    })?;
    let unrest = Unrest::start(TAP.host, guest.dir.join("vsock"))?;
    guest.run(&format!(
        "dd if=/dev/urandom of=/t/data bs={DATA} count=1 2>/dev/null; mkdir /t/sums; \
         (i=0; while :; do i=$(((i + 1) % 8)); \
         dd if=/t/data of=/dev/vda bs=64k seek=$((i * 16)) oflag=direct 2>/dev/null; \
         dd if=/dev/vda bs=64k skip=$((i * 16)) count=16 iflag=direct 2>/dev/null \
         | md5sum >>/t/sums/all; done) &"
    ))?;
    guest.run(&format!(
        "(while :; do nc {} {} </dev/zero >/dev/null 2>&1; done) &",
        TAP.host,
        unrest.port()
    ))?;
    let start = Instant::now();
    let mut before = guest.machine.stats()?;
    for round in 0..pulses {
        pulse(&guest.machine).with_context(|| format!("Pulse {round}"))?;
        let now = guest.machine.stats()?;
        ensure!(
            now.at_least(&before),
            "Pulse {round}: {:?}, then {:?}",
            before.totals,
            now.totals
        );
        before = now;
        // Asking costs exits, which are to be counted as well.
        let answer = guest
            .run("echo $((6 * 7))")
            .with_context(|| format!("After pulse {round}"))?;
        ensure!(answer == "42", "After pulse {round}: {answer}");
        let due = Duration::from_millis(500) * (round + 1);
        sleep(due.saturating_sub(start.elapsed()));
    }
    drop(unrest);
    guest.run_until(
        "[ $(wc -l </t/sums/all) -ge 4 ] && echo enough || true",
        "enough",
    )?;
    let sums = guest.run("md5sum </t/data; sort -u /t/sums/all")?;
    let lines: Vec<&str> = sums.lines().collect();
    ensure!(
        lines.len() == 2 && lines[0] == lines[1],
        "Written and read back: {sums}"
    );
    let moved = guest.counter("net", "rx_frames")?;
    ensure!(
        moved > 0,
        "Nothing came over the network after the last pulse"
    );
    let complaints = guest.run("dmesg | grep -E 'I/O error|lockup|stall|unstable' || true")?;
    ensure!(
        complaints.is_empty(),
        "The guest's kernel says:\n{complaints}"
    );
    guest.machine.must("PUT", "/api/v1/vm.pause", None)?;
    let stats = guest.machine.stats()?;
    same_exits(&stats.occurred(), &histogram.of_all()?)?;
    Ok(())
}
