//! System calls, counted by the kernel's histogram trigger.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const EVENTS: &str = "/sys/kernel/tracing/events/syscalls";
const TRIGGER: &str = "hist:keys=common_pid:size=1024";

/// A running count of one system call; ends when dropped.
#[derive(Debug)]
pub struct SyscallCount(PathBuf);

impl SyscallCount {
    /// Starts from zero.
    pub fn start(name: &str) -> Result<Self> {
        let count = SyscallCount(Path::new(EVENTS).join(format!("sys_enter_{name}")));
        // A trigger that a killed run left behind would refuse a second one.
        let _ = count.set(&format!("!{TRIGGER}"));
        count.set(TRIGGER)?;
        Ok(count)
    }

    /// Calls so far, of all threads of a process.
    pub fn of_process(&self, pid: u32) -> Result<u64> {
        let text = fs::read_to_string(self.0.join("hist"))
            .with_context(|| format!("Cannot read the histogram of {}", self.0.display()))?;
        Ok(parse(&text)
            .into_iter()
            .filter(|(thread, _)| Path::new(&format!("/proc/{pid}/task/{thread}")).exists())
            .map(|(_, calls)| calls)
            .sum())
    }

    fn set(&self, trigger: &str) -> Result<()> {
        fs::write(self.0.join("trigger"), trigger)
            .with_context(|| format!("Cannot set {trigger:?} on {}", self.0.display()))
    }
}

impl Drop for SyscallCount {
    fn drop(&mut self) {
        let _ = self.set(&format!("!{TRIGGER}"));
    }
}

/// Rows of thread and calls.
fn parse(text: &str) -> Vec<(u32, u64)> {
    text.lines()
        .filter_map(|line| {
            let (key, calls) = line
                .strip_prefix("{ common_pid:")?
                .split_once("} hitcount:")?;
            Some((key.trim().parse().ok()?, calls.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_the_rest_is_left() {
        let text = "# event histogram\n\n\
                    { common_pid:        221 } hitcount:         12\n\
                    { common_pid:        222 } hitcount:          1\n\n\
                    Totals:\n    Hits: 13\n";
        assert_eq!(parse(text), [(221, 12), (222, 1)]);
    }
}
