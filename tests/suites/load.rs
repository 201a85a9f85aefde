//! Many clients ask for the figures of a machine whose vCPUs are all at work.

use std::time::Duration;

use anyhow::{Result, ensure};
use instrumentation::table::Isa;
use lab::load::busy::{self, Moment, Span};
use lab::load::{self, Outcome, Plan};
use lab::oracle::{SyscallCount, vcpu_threads};
use lab::vmm::Machine;
use rustix::process::{Pid, setpriority_process};

use crate::accounting::host_may_add;
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "load",
    // Bochs is too slow for many questions.
    applies: |site| site.is_patched() && site.isa() == Isa::Svm,
    trials: trials![sixty_four_clients_hold_up_no_vcpu],
};

/// Clients.
pub const CLIENTS: usize = 64;

/// What is asked. An answer with the reasons that never occurred has a quarter of
/// a megabyte, which an emulated CPU copies byte by byte.
pub const QUESTION: &str = "/exit-stats?nonzero=true";

/// A busy machine whose vCPUs leave the CPU to whoever else wants it: a host
/// with one CPU has none for the VMM's other threads and the clients, and how
/// long they wait for the CPU is not what is asked here.
pub fn busy_machine(site: &Site) -> Result<Machine> {
    let machine = busy::boot(&site.bin(), &site.fresh_dir()?, site.isa())?;
    if !site.is_shared() {
        for thread in vcpu_threads(machine.pid())? {
            setpriority_process(Pid::from_raw(thread.id as i32), 19)?;
        }
    }
    Ok(machine)
}

/// What clients saw, what became of the machine meanwhile, and what the VMM did
/// that could hold up a vCPU.
pub struct Observed {
    pub outcome: Outcome,
    pub span: Span,
    /// Times that one of the VMM's threads waited for another or woke it.
    pub futexes: u64,
    /// Signals that it sent to a thread.
    pub signals: u64,
}

/// Lets 64 clients ask for something.
pub fn observe(machine: &Machine, path: &str, hertz: f64, lasting: Duration) -> Result<Observed> {
    let plan = Plan {
        clients: CLIENTS,
        hertz,
        lasting,
        path: path.to_owned(),
        together: false,
        figures: path.starts_with("/exit-stats"),
    };
    let (futexes, signals) = (
        SyscallCount::start("futex")?,
        SyscallCount::start("tgkill")?,
    );
    let before = Moment::of(machine)?;
    let outcome = load::run(&machine.socket(), &plan)?;
    let span = Moment::of(machine)?.since(&before);
    Ok(Observed {
        outcome,
        span,
        futexes: futexes.of_process(machine.pid())?,
        signals: signals.of_process(machine.pid())?,
    })
}

/// Exits that neither the guest's work nor the host's interrupts explain.
pub fn unexplained(site: &Site, span: &Span) -> u64 {
    let numbers = site.numbers();
    let own = [
        numbers.cpuid,
        numbers.io,
        numbers.read_msr,
        numbers.write_msr,
    ];
    span.reasons
        .iter()
        .filter(|&(&reason, _)| !own.contains(&reason) && !host_may_add(site, reason))
        .map(|(_, exits)| exits)
        .sum()
}

fn sixty_four_clients_hold_up_no_vcpu(site: &Site) -> Result<()> {
    let machine = busy_machine(site)?;
    let seen = observe(&machine, QUESTION, 5.0, Duration::from_secs(2))?;
    ensure!(
        seen.outcome.times.len() == seen.outcome.due,
        "Answers are missing: {}",
        seen.outcome
    );
    let span = &seen.span;
    ensure!(
        (span.waits, seen.futexes, seen.signals, span.interrupted) == (0, 0, 0, 0),
        "vCPUs waited {} times, threads for each other {} times, {} signals were sent, \
         {} vCPUs left the guest for one",
        span.waits,
        seen.futexes,
        seen.signals,
        span.interrupted
    );
    ensure!(
        unexplained(site, span) == 0,
        "Neither guest nor host explain all of {:?}",
        span.reasons
    );
    // The guest was at work, and the figures are of that.
    let cpuid = span.reasons.get(&site.numbers().cpuid);
    ensure!(
        cpuid.is_some_and(|&exits| exits > 1000),
        "The guest did little: {:?}",
        span.reasons
    );
    Ok(())
}
