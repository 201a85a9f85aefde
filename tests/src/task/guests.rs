//! Payloads other than the lab's own Linux as guests on emulated SVM hosts.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::hosted::{Hosted, Suite};
use super::test::{ensure_found, is_outcome};
use super::{Built, as_built as built_before, build};
use crate::artifact::kernel::Series;
use crate::artifact::payloads;
use crate::host::Qemu;
use crate::progress::seconds;
use crate::tree::Tree;

/// What the names of the trials begin with, and of those among them that take a
/// minute.
pub const NAMES: &str = "guests";
pub const SHORT: &str = "guests::";

/// The suites, each with the host that it runs on.
const SUITES: [Suite; 2] = [
    ("guests::", &Qemu::ONE_CPU),
    ("guests_firmware::", &Qemu::COUNTED_TICKING),
];

/// How long one trial may take: a kernel, and all of them in every way.
const PATIENCE: Duration = Duration::from_secs(1200);
const LONG_PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// Runs the suite by itself.
pub fn guests(tree: &Tree, filter: Option<&str>, long: bool, as_built: bool) -> Result<()> {
    let make = if as_built { built_before } else { build };
    let built = make(tree, Series::V6_1)?;
    let started = Instant::now();
    let filter = filter.unwrap_or(NAMES);
    let mut trials = 0;
    run(tree, &built, filter, long, &mut |line| {
        println!("{line}");
        trials += usize::from(is_outcome(line));
    })?;
    ensure_found(filter, trials)?;
    println!("(the whole round took {})", seconds(started.elapsed()));
    Ok(())
}

/// Runs the trials whose name contains this.
pub fn run(
    tree: &Tree,
    built: &Built,
    filter: &str,
    long: bool,
    relay: &mut dyn FnMut(&str),
) -> Result<()> {
    Hosted {
        suites: &SUITES,
        before: "",
        files: &payloads::fetch(tree, long)?,
        disks: &[],
        patience: if long { LONG_PATIENCE } else { PATIENCE },
        long,
    }
    .run(tree, built, filter, relay)
}
