//! One Linux guest, observed from every side. Booting it is slow under VMX
//! emulation, so it happens once and many trials look at the record.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::guest;
use lab::oracle::{ExitHistogram, Histogram};
use lab::vmm::{Finished, Machine, Stats};
use serde_json::Value;

use crate::site::Site;

/// Guest readings taken while the host reads too.
const READINGS: usize = 3;

const READY: &str = "@guest ready";
const GO_ON: &str = "go on";

/// What the guest does: reads its own exits by our reader and by Debian's
/// `cpuid`, then waits for a word from the terminal and powers off.
fn script(site: &Site) -> String {
    let io = site.numbers().io;
    format!(
        "for i in $(seq 1 {READINGS}); do\n\
         echo \"@reading $i begins\"; exit-stats --json --all; echo \"@reading $i ends\"\n\
         done\n\
         echo '@table begins'; exit-stats; echo \"@table ends $?\"\n\
         echo '@cpuid begins'\n\
         exit-stats --format leaves | grep '^0x4ffffffd  {io:#010x}'\n\
         cpuid -1 -r -l 0x4ffffffd -s {io} | grep 0x4ffffffd\n\
         cpuid -1 -r -l 0x4ffffffd -s 0x1000a | grep 0x4ffffffd\n\
         echo '@cpuid ends'\n\
         echo '{READY}'\n\
         read -r word\n\
         echo \"@word $word\"\n"
    )
}

/// What all sides said about one guest.
#[derive(Debug)]
pub struct LinuxRun {
    /// The serial console up to power-off.
    pub serial: String,
    /// What the guest read, by its own reader.
    pub guest: Vec<GuestReading>,
    /// REST readings while the guest ran, each with what the serial console
    /// showed once the reading was complete.
    pub running: Vec<(Stats, String)>,
    /// Two REST readings while the guest was paused.
    pub paused: [Stats; 2],
    /// The same moment by `ch-remote exit-stats --format json`.
    pub by_ch_remote: Stats,
    /// And by its default table.
    pub table: String,
    /// The tracepoint's count per reason at that moment.
    pub traced: Histogram,
    /// KVM's own count at that moment.
    pub debugfs: u64,
    /// How the VMM ended after the guest had powered off.
    pub finished: Finished,
}

/// One reading by the guest's reader.
#[derive(Clone, Debug)]
pub struct GuestReading {
    /// The total of all reasons.
    pub exits: u64,
    /// The total of their cycles.
    pub cycles: u64,
    /// Exits and cycles by number.
    pub reasons: BTreeMap<u32, (u64, u64)>,
}

impl LinuxRun {
    /// Boots and observes.
    pub fn record(site: &Site) -> Result<LinuxRun> {
        let histogram = ExitHistogram::start()?;
        let mut machine = site.boot_linux(&script(site), 1)?;
        let running = watch(site, &mut machine)?;
        machine.must("PUT", "/api/v1/vm.pause", None)?;
        let paused = [machine.stats()?, machine.stats()?];
        let json = machine.ch_remote_text(&["exit-stats", "--all", "--format", "json"])?;
        let by_ch_remote = Stats::read(&serde_json::from_str(&json).context("Not JSON")?)?;
        let table = machine.ch_remote_text(&["exit-stats"])?;
        let traced = histogram.of_process(machine.pid())?;
        let debugfs = machine.debugfs_exits()?;
        machine.must("PUT", "/api/v1/vm.resume", None)?;
        machine.type_line(GO_ON)?;
        let finished = machine.wait_for_end()?;
        let serial = machine.serial().text();
        let guest = guest_readings(&serial)?;
        Ok(LinuxRun {
            serial,
            guest,
            running,
            paused,
            by_ch_remote,
            table,
            traced,
            debugfs,
            finished,
        })
    }

    /// The lines between two marks on the serial console.
    pub fn between(&self, from: &str, to: &str) -> Result<&str> {
        between(&self.serial, from, to)
    }
}

/// Reads over REST until the guest has finished its own readings.
fn watch(site: &Site, machine: &mut Machine) -> Result<Vec<(Stats, String)>> {
    let deadline = Instant::now() + site.linux_deadline();
    let mut readings = Vec::new();
    loop {
        let stats = machine.stats()?;
        let shown = machine.serial().text();
        let ready = shown.contains(READY);
        readings.push((stats, shown));
        if ready {
            return Ok(readings);
        }
        ensure!(
            machine.is_running() && Instant::now() < deadline,
            "The guest did not get ready; the VMM said: {}\n{}",
            machine.stderr().trim(),
            machine.serial().tail()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The mark that the guest prints before a reading, or after it.
pub fn mark(reading: usize, end: bool) -> String {
    format!(
        "@reading {} {}",
        reading + 1,
        if end { "ends" } else { "begins" }
    )
}

fn guest_readings(serial: &str) -> Result<Vec<GuestReading>> {
    (0..READINGS)
        .map(|index| {
            let json = between(serial, &mark(index, false), &mark(index, true))?;
            let value: Value = serde_json::from_str(json.trim())
                .with_context(|| format!("The guest's reader printed {json:?}"))?;
            let number = |value: &Value, name: &str| {
                value[name]
                    .as_u64()
                    .with_context(|| format!("No {name} in {value}"))
            };
            let rows = value["reasons"]
                .as_array()
                .context("The guest read no reasons")?;
            let reasons = rows
                .iter()
                .map(|row| {
                    let counts = (number(row, "exits")?, number(row, "cycles")?);
                    Ok((u32::try_from(number(row, "number")?)?, counts))
                })
                .collect::<Result<_>>()?;
            Ok(GuestReading {
                exits: number(&value, "exits")?,
                cycles: number(&value, "cycles")?,
                reasons,
            })
        })
        .collect()
}

/// What a guest printed between two marks.
pub fn between<'a>(text: &'a str, from: &str, to: &str) -> Result<&'a str> {
    let (_, rest) = text
        .split_once(from)
        .with_context(|| format!("The guest never said {from:?}"))?;
    let (part, _) = rest
        .split_once(to)
        .with_context(|| format!("The guest never said {to:?}"))?;
    Ok(part.trim_start_matches('\n'))
}

/// Whether Linux reached its first program.
pub fn reached_user_space(serial: &str) -> bool {
    serial.lines().any(|line| line.starts_with(guest::UP))
}
