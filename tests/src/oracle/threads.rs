//! What the scheduler keeps of the threads of a process.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// A thread, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its number.
    pub id: u32,
    /// Time that it spent on a CPU.
    pub ran: Duration,
    /// Time that it wanted a CPU and had none.
    pub waited: Duration,
    /// How often it gave its CPU up to wait for something.
    pub waits: u64,
    /// How often its CPU was taken from it.
    pub preemptions: u64,
}

/// The threads of a VMM's vCPUs.
pub fn vcpu_threads(pid: u32) -> Result<Vec<Thread>> {
    let folder = format!("/proc/{pid}/task");
    let mut threads = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("Cannot list {folder}"))? {
        let path = entry?.path();
        let name = fs::read_to_string(path.join("comm"))?;
        let number = name.trim().strip_prefix("vcpu");
        if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
            threads.push(thread(&path)?);
        }
    }
    ensure!(!threads.is_empty(), "Process {pid} has no vCPU's thread");
    threads.sort_by_key(|thread| thread.id);
    Ok(threads)
}

fn thread(path: &Path) -> Result<Thread> {
    let id = path.file_name().unwrap_or_default().to_string_lossy();
    let times = fs::read_to_string(path.join("schedstat"))?;
    let mut times = times.split_whitespace();
    let mut time = || -> Result<Duration> {
        let word = times.next().unwrap_or_default();
        let nanoseconds = word.parse().context("A thread's time is no number")?;
        Ok(Duration::from_nanos(nanoseconds))
    };
    let status = fs::read_to_string(path.join("status"))?;
    let field = |name: &str| -> Result<u64> {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .with_context(|| format!("{} has no {name}", path.display()))?
            .trim()
            .parse()
            .with_context(|| format!("{name} of {} is no number", path.display()))
    };
    Ok(Thread {
        id: id.parse().context("A thread's id is no number")?,
        ran: time()?,
        waited: time()?,
        waits: field("voluntary_ctxt_switches:")?,
        preemptions: field("nonvoluntary_ctxt_switches:")?,
    })
}
