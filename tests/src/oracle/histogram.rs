//! The `kvm_exit` tracepoint, counted by the kernel's histogram trigger.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const EVENT: &str = "/sys/kernel/tracing/events/kvm/kvm_exit";
const TRIGGER: &str = "hist:keys=common_pid,exit_reason:size=8192";

/// Exits by reason of one process.
pub type Histogram = BTreeMap<u32, u64>;

/// Fails, with the reasons that they disagree on, unless what we counted is what
/// was traced.
pub fn same_exits(counted: &Histogram, traced: &Histogram) -> Result<()> {
    let reasons: BTreeSet<_> = counted.keys().chain(traced.keys()).collect();
    let differences: Vec<String> = reasons
        .into_iter()
        .map(|reason| (reason, counted.get(reason), traced.get(reason)))
        .filter(|(_, counted, traced)| counted != traced)
        .map(|(reason, counted, traced)| {
            format!("reason {reason}: {counted:?} counted, {traced:?} traced")
        })
        .collect();
    ensure!(
        differences.is_empty(),
        "Counted is not what was traced: {}",
        differences.join("; ")
    );
    Ok(())
}

/// A running count of the tracepoint's hits; ends when dropped.
#[derive(Debug)]
pub struct ExitHistogram(());

impl ExitHistogram {
    /// Starts from zero.
    pub fn start() -> Result<Self> {
        // A trigger that a killed run left behind would refuse a second one.
        let _ = set(&format!("!{TRIGGER}"));
        set(TRIGGER)?;
        Ok(ExitHistogram(()))
    }

    /// The hits so far, of all threads of a process.
    pub fn of_process(&self, pid: u32) -> Result<Histogram> {
        self.sum(|thread| Path::new(&format!("/proc/{pid}/task/{thread}")).exists())
    }

    /// The hits so far of everybody, threads that have ended included.
    pub fn of_all(&self) -> Result<Histogram> {
        self.sum(|_| true)
    }

    fn sum(&self, is_wanted: impl Fn(u32) -> bool) -> Result<Histogram> {
        let text = fs::read_to_string(Path::new(EVENT).join("hist"))
            .context("Cannot read the histogram of kvm_exit")?;
        let mut sum = Histogram::new();
        for (thread, reason, hits) in parse(&text)? {
            if is_wanted(thread) {
                *sum.entry(reason).or_default() += hits;
            }
        }
        Ok(sum)
    }
}

impl Drop for ExitHistogram {
    fn drop(&mut self) {
        let _ = set(&format!("!{TRIGGER}"));
    }
}

fn set(trigger: &str) -> Result<()> {
    fs::write(Path::new(EVENT).join("trigger"), trigger)
        .with_context(|| format!("Cannot set {trigger:?} on kvm_exit"))
}

/// Rows of thread, reason and hits.
fn parse(text: &str) -> Result<Vec<(u32, u32, u64)>> {
    let mut rows = Vec::new();
    for line in text.lines() {
        if let Some(dropped) = line.trim().strip_prefix("Dropped:") {
            ensure!(
                dropped.trim() == "0",
                "The histogram dropped {dropped} hits"
            );
        }
        let Some((keys, hits)) = line
            .strip_prefix('{')
            .and_then(|line| line.split_once("} hitcount:"))
        else {
            continue;
        };
        let field = |name: &str| -> Result<u32> {
            keys.split(',')
                .filter_map(|key| key.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .and_then(|(_, value)| value.trim().parse().ok())
                .with_context(|| format!("No {name} in {line:?}"))
        };
        let hits = hits
            .trim()
            .parse()
            .with_context(|| format!("No hits in {line:?}"))?;
        rows.push((field("common_pid")?, field("exit_reason")?, hits));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "# event histogram\n\
        # trigger info: hist:keys=common_pid,exit_reason:vals=hitcount:size=8192 [active]\n\n\
        { common_pid:        221, exit_reason:         30 } hitcount:       1234\n\
        { common_pid:        222, exit_reason: 2147483681 } hitcount:          1\n\n\
        Totals:\n    Hits: 1235\n    Entries: 2\n    Dropped: 0\n";

    #[test]
    fn rows_are_read_with_both_keys() {
        assert_eq!(
            parse(SAMPLE).unwrap(),
            [(221, 30, 1234), (222, 0x8000_0021, 1)]
        );
    }

    #[test]
    fn dropped_hits_are_an_error() {
        assert!(parse(&SAMPLE.replace("Dropped: 0", "Dropped: 7")).is_err());
    }
}
