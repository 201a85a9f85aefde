//! Many vCPUs at work.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::guest::{Guest, Spec};
use crate::site::Site;

const VCPUS: u32 = 8;

pub fn eight_vcpus_bear_stress(site: &Site) -> Result<()> {
    let seconds = if site.is_long() { 120 } else { 8 };
    let spec = Spec {
        vcpus: VCPUS,
        memory_mib: 512,
        ..Spec::shell()
    };
    let mut guest = Guest::boot(site, &spec)?;
    let cpus = guest.run("nproc")?;
    ensure!(cpus == VCPUS.to_string(), "The guest has {cpus} CPUs");
    let said = guest.run_within(
        &format!(
            "stress-ng --verify --cpu 4 --vm 2 --vm-bytes 16m --switch 4 --futex 2 --timer 1 \
             --fork 1 --timeout {seconds} 2>&1"
        ),
        Duration::from_secs(seconds + 300),
    )?;
    ensure!(said.contains("successful run completed"), "{said}");
    let complaints =
        guest.run("dmesg --notime | grep -E 'stall|lockup|BUG:|Call Trace|blocked for' || true")?;
    ensure!(
        complaints.is_empty(),
        "The guest's kernel says {complaints}"
    );
    guest.hold_accounts()?;
    let idle: Vec<_> = guest
        .stats()?
        .vcpus
        .iter()
        .filter(|(totals, _)| totals.exits < 1000)
        .map(|(totals, _)| totals.exits)
        .collect();
    ensure!(idle.is_empty(), "vCPUs with few exits: {idle:?}");
    Ok(())
}
