//! The API of a machine that is busy on this machine's own KVM.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::load::LIMIT;
use crate::host::Isa;
use crate::load::busy::{self, Moment, Span};
use crate::load::{self, Outcome, Plan};
use crate::oracle::vcpu_threads;
use crate::tree::Tree;
use crate::vmm::Machine;

/// By how much the guest's exits may become rarer or more frequent.
const CHANGE: f64 = 0.01;
/// How long the clients ask at a stretch. Between two stretches the guest is
/// alone for as long.
const STRETCH: Duration = Duration::from_secs(1);

/// Polls a busy machine and judges how fast the answers come and how the guest
/// fares. Says so where there is no KVM that can run one.
pub fn load_busy(tree: &Tree, lasting: Duration) -> Result<()> {
    if !Path::new("/dev/kvm").exists() {
        println!("A busy guest: left out, this machine has no KVM");
        return Ok(());
    }
    let dir = tree.fresh_log_dir("load-busy")?;
    let bin = tree.root().join("target/release");
    // The guest's instructions are the same on either.
    let machine = busy::boot(&bin, &dir, Isa::Vmx)?;
    let _apart = Apart::put(&machine)?;
    let stretches = (lasting.as_secs() as usize).max(5);
    let mut alone = vec![alone_for(&machine)?];
    let (mut asked, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..stretches {
        let before = Moment::of(&machine)?;
        let outcome = load::run(
            &machine.socket(),
            &Plan {
                clients: 64,
                hertz: 100.0,
                lasting: STRETCH,
                path: "/exit-stats".to_owned(),
                together: false,
                figures: true,
            },
        )?;
        asked.push(Moment::of(&machine)?.since(&before));
        ensure!(outcome.times.len() == outcome.due, "Answers are missing");
        answers.push(outcome);
        alone.push(alone_for(&machine)?);
    }
    let outcome = Outcome::of_all(answers);
    let source = outcome.last.first().map(|body| body["source"].clone());
    println!(
        "8 busy vCPUs on this machine's KVM ({}): {outcome}",
        source
            .as_ref()
            .and_then(|source| source.as_str())
            .unwrap_or("?")
    );
    let rates: Vec<f64> = alone.iter().map(rate).collect();
    // Each against the stretches beside it: the machine's own speed wanders.
    let beside = |index: usize| (rates[index] + rates[index + 1]) / 2.0;
    let change = median(
        asked
            .iter()
            .enumerate()
            .map(|(index, span)| rate(span) / beside(index) - 1.0),
    );
    // How far the guest alone is from itself, for comparison.
    let noise = median((1..rates.len() - 1).map(|index| {
        let around = (rates[index - 1] + rates[index + 1]) / 2.0;
        (rates[index] / around - 1.0).abs()
    }));
    println!(
        "its guest's exits: {:.0} a second alone, {:+.2} % while asked (alone it varies by {:.2} %)",
        median(rates.iter().copied()),
        change * 100.0,
        noise * 100.0,
    );
    let held_up: u64 = asked.iter().map(|span| span.waits + span.interrupted).sum();
    ensure!(held_up == 0, "vCPUs were held up {held_up} times");
    ensure!(
        outcome.quantile(0.99) <= LIMIT,
        "p99 is over {} ms with a busy guest. Was the machine idle?",
        LIMIT.as_millis()
    );
    ensure!(
        change.abs() <= CHANGE,
        "The guest's exits changed by {:+.2} %. Was the machine idle?",
        change * 100.0
    );
    Ok(())
}

fn alone_for(machine: &Machine) -> Result<Span> {
    let before = Moment::of(machine)?;
    std::thread::sleep(STRETCH);
    Ok(Moment::of(machine)?.since(&before))
}

/// Exits a second of the time that the vCPUs had a CPU.
fn rate(span: &Span) -> f64 {
    span.exits as f64 / span.ran.as_secs_f64()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// vCPUs on all CPUs but the last, which is for the VMM's other threads and for
/// the clients, as hosts are set up whose guests matter. With the value's end
/// this thread may run everywhere again; the machine's end with it.
struct Apart(CpuSet);

impl Apart {
    fn put(machine: &Machine) -> Result<Apart> {
        let all = sched_getaffinity(None).context("Cannot tell which CPUs there are")?;
        let numbers: Vec<usize> = (0..CpuSet::MAX_CPU)
            .filter(|&cpu| all.is_set(cpu))
            .collect();
        let Some((&last, others)) = numbers.split_last().filter(|(_, rest)| !rest.is_empty())
        else {
            return Ok(Apart(all));
        };
        let set = |cpus: &[usize]| {
            let mut set = CpuSet::new();
            cpus.iter().for_each(|&cpu| set.set(cpu));
            set
        };
        let vcpus: Vec<u32> = vcpu_threads(machine.pid())?
            .iter()
            .map(|thread| thread.id)
            .collect();
        for entry in fs::read_dir(format!("/proc/{}/task", machine.pid()))? {
            let id: u32 = entry?.file_name().to_string_lossy().parse()?;
            let place = if vcpus.contains(&id) { others } else { &[last] };
            sched_setaffinity(Pid::from_raw(id as i32), &set(place))
                .with_context(|| format!("Cannot place thread {id}"))?;
        }
        sched_setaffinity(None, &set(&[last])).context("Cannot place the clients")?;
        Ok(Apart(all))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.0);
    }
}
