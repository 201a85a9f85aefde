//! How long a vCPU has lived, from two tracepoints stamped with the raw TSC:
//! its first VM entry and the last time that it went out to user space.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const INSTANCES: &str = "/sys/kernel/tracing/instances";

/// Records from its start on; ends when dropped.
#[derive(Debug)]
pub struct Lives {
    /// Keeps the oldest events: what comes when it is full is lost.
    entries: Instance,
    /// Keeps the newest ones.
    returns: Instance,
}

impl Lives {
    /// Starts with nothing recorded.
    pub fn start() -> Result<Lives> {
        let entries = Instance::new("lab-entries")?;
        entries.set("options/overwrite", "0")?;
        entries.set("events/kvm/kvm_entry/enable", "1")?;
        let returns = Instance::new("lab-returns")?;
        returns.set("events/kvm/kvm_userspace_exit/enable", "1")?;
        Ok(Lives { entries, returns })
    }

    /// TSC at a thread's first VM entry and at its last return to user space.
    /// Stops recording.
    pub fn of_thread(&self, thread: u32) -> Result<(u64, u64)> {
        self.entries.set("tracing_on", "0")?;
        self.returns.set("tracing_on", "0")?;
        let entry = stamps(&self.entries.get("trace")?, thread)
            .next()
            .with_context(|| format!("Thread {thread} never entered a guest"))?;
        let back = stamps(&self.returns.get("trace")?, thread)
            .last()
            .with_context(|| format!("Thread {thread} never came back"))?;
        ensure!(entry < back, "Thread {thread} came back before it entered");
        Ok((entry, back))
    }
}

/// A process's thread of this name.
pub fn thread_named(pid: u32, name: &str) -> Result<u32> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))
        .with_context(|| format!("There is no process {pid}"))?
    {
        let path = entry?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            let id = path.file_name().unwrap_or_default().to_string_lossy();
            return id.parse().context("A thread's id is no number");
        }
    }
    anyhow::bail!("Process {pid} has no thread {name}")
}

/// A trace buffer of its own.
#[derive(Debug)]
struct Instance(PathBuf);

impl Instance {
    fn new(name: &str) -> Result<Instance> {
        let folder = Path::new(INSTANCES).join(name);
        // One that a killed run left behind holds that run's events.
        let _ = fs::remove_dir(&folder);
        fs::create_dir(&folder).with_context(|| format!("Cannot make {}", folder.display()))?;
        let instance = Instance(folder);
        instance.set("buffer_size_kb", "64")?;
        instance.set("trace_clock", "x86-tsc")?;
        Ok(instance)
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.0.join(file);
        fs::write(&path, value).with_context(|| format!("Cannot write {}", path.display()))
    }

    fn get(&self, file: &str) -> Result<String> {
        let path = self.0.join(file);
        fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// The stamps of a thread's events, in order.
fn stamps(trace: &str, thread: u32) -> impl Iterator<Item = u64> {
    let end = format!("-{thread}");
    trace.lines().filter_map(move |line| {
        let mut words = line.split_whitespace();
        let is_thread = words.next()?.ends_with(&end);
        // Then the CPU, the flags, the stamp.
        let stamp = words.nth(2)?.strip_suffix(':')?;
        is_thread.then(|| stamp.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_of_one_thread_are_taken() {
        let trace = "# tracer: nop\n\
            #              | |         |   |||||     |         |\n\
            \x20          vcpu0-102     [000] d....   4299281: kvm_entry: vcpu 0, rip 0x1\n\
            \x20          vcpu1-1102    [000] d....   4299290: kvm_entry: vcpu 1, rip 0x2\n\
            \x20          vcpu0-102     [000] d....   4299300: kvm_entry: vcpu 0, rip 0x3\n";
        let found: Vec<u64> = stamps(trace, 102).collect();
        assert_eq!(found, [4_299_281, 4_299_300]);
    }
}
