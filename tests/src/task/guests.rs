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

/// Which trials to run, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only those whose name contains this.
    pub filter: Option<String>,
    /// All kernels and all ways.
    pub long: bool,
    /// How often each way is taken in a long run, if not ten times.
    pub resets: Option<u32>,
    /// Modules and programs as an earlier build left them.
    pub as_built: bool,
}

/// Runs the suite by itself.
pub fn guests(tree: &Tree, options: &Options) -> Result<()> {
    let make = if options.as_built {
        built_before
    } else {
        build
    };
    let built = make(tree, Series::V6_1)?;
    let started = Instant::now();
    let filter = options.filter.as_deref().unwrap_or(NAMES);
    let mut trials = 0;
    run(tree, &built, filter, options, &mut |line| {
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
    options: &Options,
    relay: &mut dyn FnMut(&str),
) -> Result<()> {
    Hosted {
        suites: &SUITES,
        before: "",
        files: &payloads::fetch(tree, options.long)?,
        disks: &[],
        patience: if options.long {
            LONG_PATIENCE
        } else {
            PATIENCE
        },
        long: options.long,
        resets: options.resets,
    }
    .run(tree, built, filter, relay)
}
