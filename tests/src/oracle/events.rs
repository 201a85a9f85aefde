//! Events of a process, counted by the kernel's histogram trigger: calls into the
//! kernel, and what a function of the kernel returns.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const TRACING: &str = "/sys/kernel/tracing";
const KEYS: &str = "hist:keys=common_pid:size=1024";

/// A running count of one system call; ends when dropped.
#[derive(Debug)]
pub struct SyscallCount(Trigger);

impl SyscallCount {
    /// Starts from zero.
    pub fn start(name: &str) -> Result<Self> {
        let event = format!("syscalls/sys_enter_{name}");
        Trigger::start(&event, KEYS.to_owned()).map(SyscallCount)
    }

    /// Calls so far, of all threads of a process.
    pub fn of_process(&self, pid: u32) -> Result<u64> {
        self.0.of_process(pid)
    }
}

/// A running count of how often a function of the kernel returns one `int`; ends
/// when dropped.
#[derive(Debug)]
pub struct ReturnCount {
    // Dropped first: an event that is in use cannot be removed.
    trigger: Option<Trigger>,
    event: String,
}

impl ReturnCount {
    /// Starts from zero.
    pub fn start(function: &str, value: i32) -> Result<Self> {
        let event = format!("kprobes/lab_{function}");
        let _ = define(&format!("-:{event}"));
        define(&format!("r:{event} {function} value=$retval:s32"))?;
        let mut count = ReturnCount {
            trigger: None,
            event,
        };
        let trigger = format!("{KEYS} if value == {value}");
        count.trigger = Some(Trigger::start(&count.event, trigger)?);
        Ok(count)
    }

    /// Returns so far, in all threads of a process.
    pub fn of_process(&self, pid: u32) -> Result<u64> {
        match &self.trigger {
            Some(trigger) => trigger.of_process(pid),
            None => Ok(0),
        }
    }
}

impl Drop for ReturnCount {
    fn drop(&mut self) {
        self.trigger = None;
        let _ = define(&format!("-:{}", self.event));
    }
}

/// Adds an event to the kernel's, or removes one.
fn define(event: &str) -> Result<()> {
    OpenOptions::new()
        .append(true)
        .open(Path::new(TRACING).join("kprobe_events"))
        .and_then(|mut events| events.write_all(event.as_bytes()))
        .with_context(|| format!("Cannot define the event {event:?}"))
}

#[derive(Debug)]
struct Trigger {
    folder: PathBuf,
    trigger: String,
}

impl Trigger {
    fn start(event: &str, trigger: String) -> Result<Trigger> {
        let folder = Path::new(TRACING).join("events").join(event);
        let count = Trigger { folder, trigger };
        // One that a killed run left behind would refuse a second one.
        let _ = count.remove();
        count.set(&count.trigger)?;
        Ok(count)
    }

    fn of_process(&self, pid: u32) -> Result<u64> {
        let text = fs::read_to_string(self.folder.join("hist"))
            .with_context(|| format!("Cannot read the histogram of {}", self.folder.display()))?;
        Ok(parse(&text)
            .into_iter()
            .filter(|(thread, _)| Path::new(&format!("/proc/{pid}/task/{thread}")).exists())
            .map(|(_, hits)| hits)
            .sum())
    }

    fn remove(&self) -> Result<()> {
        self.set(&format!("!{}", self.trigger))
    }

    fn set(&self, trigger: &str) -> Result<()> {
        fs::write(self.folder.join("trigger"), trigger)
            .with_context(|| format!("Cannot set {trigger:?} on {}", self.folder.display()))
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// Rows of thread and hits.
fn parse(text: &str) -> Vec<(u32, u64)> {
    text.lines()
        .filter_map(|line| {
            let (key, hits) = line
                .strip_prefix("{ common_pid:")?
                .split_once("} hitcount:")?;
            Some((key.trim().parse().ok()?, hits.trim().parse().ok()?))
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
