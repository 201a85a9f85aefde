//! KVM's own count of exits, from debugfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

const KVM: &str = "/sys/kernel/debug/kvm";

/// The debugfs folders of a process's VMs. Their names are the process id and
/// a file descriptor.
pub fn debugfs_vms(pid: u32) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(KVM).with_context(|| format!("Cannot list {KVM}"))?;
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| belongs_to(path, pid))
        .collect())
}

/// Exits of a process's only VM, as KVM counts them.
pub fn debugfs_exits(pid: u32) -> Result<u64> {
    let vms = debugfs_vms(pid)?;
    ensure!(
        vms.len() == 1,
        "Process {pid} has {} VMs, not one",
        vms.len()
    );
    let path = vms[0].join("exits");
    let text =
        fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
    text.trim()
        .parse()
        .with_context(|| format!("{} says {text:?}", path.display()))
}

/// Waits until the exits of a process's only VM no longer move, as when its
/// guest has halted for good.
pub fn wait_until_silent(pid: u32, within: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    let mut before = debugfs_exits(pid)?;
    loop {
        sleep(Duration::from_millis(300));
        let now = debugfs_exits(pid)?;
        if now == before && now > 0 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "The guest still exits: {before}, then {now}"
        );
        before = now;
    }
}

fn belongs_to(path: &Path, pid: u32) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.split_once('-'))
        .is_some_and(|(owner, _)| owner == pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_belongs_to_the_whole_process_id_only() {
        assert!(belongs_to(Path::new("/k/12-7"), 12));
        assert!(!belongs_to(Path::new("/k/123-7"), 12));
        assert!(!belongs_to(Path::new("/k/halt_exits"), 12));
    }
}
