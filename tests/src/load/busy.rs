//! A machine whose vCPUs are never idle, and what becomes of it while clients
//! ask for its figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use instrumentation::table::Isa;
use serde_json::Value;

use crate::guest::ManyExits;
use crate::oracle::vcpu_threads;
use crate::vmm::{Machine, MachineSpec};

/// vCPUs of the machine.
pub const VCPUS: u32 = 8;

/// How long all vCPUs may take to be at work.
const AT_WORK: Duration = Duration::from_secs(60);

/// Boots a guest whose vCPUs do the same round for ever: instructions that KVM
/// serves, and now and then an access to a port, which the VMM serves.
pub fn boot(bin: &Path, dir: &Path, isa: Isa) -> Result<Machine> {
    let work = ManyExits {
        cpuid: 40,
        ports: 2,
        msrs: 5,
        ..ManyExits::nothing(VCPUS, u32::MAX)
    };
    let kernel = dir.join("guest.elf");
    fs::write(&kernel, work.image(isa)?).context("Cannot write the guest")?;
    let spec = MachineSpec {
        vcpus: VCPUS,
        ..MachineSpec::tiny(&kernel)
    };
    let machine = Machine::boot(bin, dir, &spec)?;
    // Every one has done a little, beyond what brings it up.
    let deadline = Instant::now() + AT_WORK;
    let busy = Duration::from_millis(20);
    while !vcpu_threads(machine.pid())?
        .iter()
        .all(|thread| thread.ran > busy)
    {
        ensure!(
            Instant::now() < deadline,
            "Not all vCPUs came up: {:?}",
            vcpu_threads(machine.pid())?
        );
        sleep(Duration::from_millis(50));
    }
    Ok(machine)
}

/// How far a machine has come.
#[derive(Clone, Debug)]
pub struct Moment {
    at: Instant,
    ran: Duration,
    waits: u64,
    exits: u64,
    interrupted: u64,
    /// By reason; empty where KVM does not tell them apart.
    reasons: BTreeMap<u32, u64>,
}

impl Moment {
    /// Looks at the machine.
    pub fn of(machine: &Machine) -> Result<Moment> {
        let body = machine.must("GET", "/exit-stats", None)?.json()?;
        let threads = vcpu_threads(machine.pid())?;
        let number = |value: &Value| value.as_u64().context("A figure is missing");
        let mut reasons = BTreeMap::new();
        for row in body["reasons"].as_array().into_iter().flatten() {
            if let Some(reason) = row["number"].as_u64() {
                reasons.insert(u32::try_from(reason)?, number(&row["exits"])?);
            }
        }
        let kinds = body["vmm"]["exits"].as_array();
        let interrupted = kinds
            .into_iter()
            .flatten()
            .find(|row| row["kind"] == "interrupted");
        Ok(Moment {
            at: Instant::now(),
            ran: threads.iter().map(|thread| thread.ran).sum(),
            waits: threads.iter().map(|thread| thread.waits).sum(),
            exits: number(&body["totals"]["exits"])?,
            interrupted: interrupted.map_or(Ok(0), |row| number(&row["exits"]))?,
            reasons,
        })
    }

    /// What has happened since an earlier moment.
    pub fn since(&self, earlier: &Moment) -> Span {
        let reasons = self
            .reasons
            .iter()
            .map(|(reason, exits)| (*reason, exits - earlier.reasons.get(reason).unwrap_or(&0)))
            .filter(|(_, exits)| *exits > 0)
            .collect();
        Span {
            lasted: self.at - earlier.at,
            ran: self.ran.saturating_sub(earlier.ran),
            waits: self.waits - earlier.waits,
            exits: self.exits - earlier.exits,
            interrupted: self.interrupted - earlier.interrupted,
            reasons,
        }
    }
}

/// What happened to a machine from one moment to another.
#[derive(Clone, Debug)]
pub struct Span {
    /// Time by the clock.
    pub lasted: Duration,
    /// Time that the vCPUs' threads spent on CPUs.
    pub ran: Duration,
    /// How often one of them waited for something.
    pub waits: u64,
    /// Exits of all reasons.
    pub exits: u64,
    /// How often a signal took one out of the guest.
    pub interrupted: u64,
    /// Exits of those reasons that occurred.
    pub reasons: BTreeMap<u32, u64>,
}
