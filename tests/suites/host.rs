//! What all the other suites left behind on the host.

use anyhow::{Result, ensure};
use lab::oracle;

use crate::site::{Site, skip};
use crate::{Suite, keep_vm, trials};

pub const SUITE: Suite = Suite {
    name: "host",
    applies: |_| true,
    trials: trials![kernel_log_holds_no_warning, no_vm_is_left],
};

fn kernel_log_holds_no_warning(site: &Site) -> Result<()> {
    if site.is_shared() {
        return skip("the log of a machine that others use says nothing about us");
    }
    let warnings = oracle::warnings()?;
    ensure!(
        warnings.is_empty(),
        "The kernel says:\n{}",
        warnings.join("\n")
    );
    Ok(())
}

fn no_vm_is_left(site: &Site) -> Result<()> {
    if site.is_shared() {
        return skip("others may run machines here");
    }
    let left: Vec<_> = std::fs::read_dir("/sys/kernel/debug/kvm")?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| {
            name.to_string_lossy()
                .split_once('-')
                .is_some_and(|(process, _)| process.parse().ok() != keep_vm::process())
        })
        .collect();
    ensure!(left.is_empty(), "KVM still has {left:?}");
    Ok(())
}
