//! What a user of a guest does: the reader in all its forms, and the program of
//! the guide.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::artifact::cpio::Cpio;
use lab::guest;
use lab::vmm::{Machine, MachineSpec};
use serde_json::Value;

use crate::evidence::between;
use crate::site::{Site, skip};
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "guest",
    // Some boots of Linux.
    applies: |site| site.is_patched() && site.boots_quickly(),
    trials: trials![
        c_program_of_the_guide_reads_what_the_reader_reads,
        reader_goes_on_and_says_what_is_wrong_in_one_line,
        guest_without_a_script_has_a_shell,
    ],
};

/// Boots Linux with a program more, and returns what its script printed.
fn printed(site: &Site, script: &str, more: Cpio) -> Result<String> {
    let dir = site.fresh_dir()?;
    let initramfs = dir.join("initramfs");
    guest::initramfs(&site.base_initramfs(), script, &initramfs)?;
    let mut image = fs::read(&initramfs)?;
    image.extend(more.finish());
    fs::write(&initramfs, image)?;
    let spec = MachineSpec::linux(&site.kernel(), &initramfs, 1);
    let mut machine = Machine::boot(&site.bin(), &dir, &spec)?;
    machine.wait_for(guest::SCRIPT_END, site.linux_deadline())?;
    machine.wait_for_end()?;
    Ok(machine.serial().text())
}

/// Exits of a reason in a reading of the reader.
fn exits(json: &str, number: u32) -> Result<u64> {
    let reading: Value = serde_json::from_str(json.trim())
        .with_context(|| format!("The reader printed {json:?}"))?;
    let rows = reading["reasons"].as_array().context("No reasons")?;
    rows.iter()
        .find(|row| row["number"] == number)
        .and_then(|row| row["exits"].as_u64())
        .with_context(|| format!("No row for {number} in {json}"))
}

fn c_program_of_the_guide_reads_what_the_reader_reads(site: &Site) -> Result<()> {
    let program = site.guide_program();
    if !program.exists() {
        return skip("the guide's program was not compiled for this host");
    }
    let script = "echo '@start'; exit-stats --json --all; echo '@first'\n\
                  /guide; echo '@second'\n\
                  exit-stats --json --all; echo '@third'\n";
    let more = Cpio::new().copy("/guide", 0o755, &program)?;
    let serial = printed(site, script, more)?;
    let faults = site.numbers().nested_fault;
    let before = exits(between(&serial, "@start", "@first")?, faults)?;
    let shown = between(&serial, "@first", "@second")?.trim();
    let after = exits(between(&serial, "@second", "@third")?, faults)?;
    let read: u64 = shown
        .strip_prefix("EPT violations: ")
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("The guide's program prints {shown:?}"))?;
    ensure!(
        before > 0 && (before..=after).contains(&read),
        "{before} exits of reason {faults:#x}, then {read} by the guide's program, then {after}"
    );
    Ok(())
}

fn reader_goes_on_and_says_what_is_wrong_in_one_line(site: &Site) -> Result<()> {
    let cpuid = site.numbers().cpuid;
    let script = format!(
        "exit-stats --watch 0.1 --json --reason {cpuid:#x} | head -3; echo '@watched'\n\
         exit-stats --watch 0.1 | head -4; echo '@tables'\n\
         exit-stats --reason NOBODY 2>&1; echo \"@wrong $?\"\n\
         exit-stats --reason 0x1000a 2>&1; echo \"@undefined $?\"\n\
         exit-stats --everything 2>&1; echo \"@usage $?\"\n\
         exit-stats --watch 0 2>&1; echo \"@zero $?\"\n"
    );
    let serial = printed(site, &script, Cpio::new())?;
    let readings: Vec<u64> = between(&serial, guest::UP, "@watched")?
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| exits(line, cpuid))
        .collect::<Result<_>>()?;
    // Each interval has the CPUIDs of one reading: the leaf that says what this is,
    // two of the reason, two of the totals.
    ensure!(
        readings.len() == 3 && readings.iter().all(|&exits| exits == 5),
        "Every question is an exit, so each interval has five: {readings:?}"
    );
    let table = between(&serial, "@watched", "@tables")?;
    ensure!(
        table.contains("Exits/s") && table.contains(" s (1 vCPU") && !table.contains('\x1b'),
        "Into a pipe a table of the interval goes as it is: {table:?}"
    );
    let refused = between(&serial, "@usage", "@zero")?;
    ensure!(
        refused.contains("0.01 to 86400 seconds are possible") && serial.contains("@zero 2"),
        "An interval of nothing is refused: {refused:?}"
    );
    for (from, to, status) in [
        ("@tables", "@wrong ", 1),
        ("@wrong ", "@undefined ", 1),
        ("@undefined ", "@usage ", 2),
    ] {
        let said = between(&serial, from, to)?;
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("exit-stats: "))
            .collect();
        ensure!(lines.len() == 1, "Before {to:?}: {said:?}");
        ensure!(
            serial.contains(&format!("{to}{status}")),
            "The status is not {status} after {lines:?}"
        );
    }
    Ok(())
}

fn guest_without_a_script_has_a_shell(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let spec = MachineSpec::linux(&site.kernel(), &site.base_initramfs(), 1);
    let mut machine = Machine::boot(&site.bin(), &dir, &spec)?;
    machine.wait_for("exit powers it off", site.linux_deadline())?;
    machine.type_line("exit-stats --reason CPUID; exit")?;
    let finished = machine.wait_for_end()?;
    let serial = machine.serial().text();
    ensure!(
        finished.status.success() && serial.contains("CPUID  "),
        "{}:\n{serial}",
        finished.status
    );
    Ok(())
}
