//! Debian as a guest on an emulated host.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::hosted::{Hosted, Suite};
use super::test::{ensure_found, is_outcome};
use super::{Built, as_built, build};
use crate::artifact::debian::{DISK_MODULES, Debian};
use crate::artifact::kernel::Series;
use crate::host::Qemu;
use crate::progress::seconds;
use crate::tree::Tree;

/// What the host does: gets its disks, and shows Debian's programs what they
/// need to see.
const SCRIPT: &str = include_str!("debian-host.sh");

/// What the names of the trials begin with.
pub const NAMES: &str = "debian";

/// The suites, each with the host that it runs on.
const SUITES: [Suite; 3] = [
    ("debian::", &Qemu::ONE_CPU),
    ("debian_on_two_cpus::", &Qemu::TWO_CPUS),
    // Minutes: in a long run, or when it is asked for.
    ("debian_by_firmware::", &Qemu::COUNTED_TICKING),
];
/// So many of them are part of every run.
const ALWAYS: usize = 2;

/// What the host loads besides: its disks' drivers and the tap.
const TUN: &str = "drivers/net/tun";

/// How long one trial may take, and how long with large amounts.
const PATIENCE: Duration = Duration::from_secs(2400);
const LONG_PATIENCE: Duration = Duration::from_secs(3600);

/// Which trials to run, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only those whose name contains this.
    pub filter: Option<String>,
    /// With the amounts that take minutes.
    pub long: bool,
    /// Modules and programs as an earlier build left them.
    pub as_built: bool,
}

/// Runs the suite by itself.
pub fn debian(tree: &Tree, options: &Options) -> Result<()> {
    let make = if options.as_built { as_built } else { build };
    let built = make(tree, Series::V6_1)?;
    let started = Instant::now();
    let filter = options.filter.as_deref().unwrap_or(NAMES);
    let mut trials = 0;
    run(tree, &built, filter, options.long, &mut |line| {
        println!("{line}");
        trials += usize::from(is_outcome(line));
    })?;
    ensure_found(filter, trials)?;
    println!("(the whole round took {})", seconds(started.elapsed()));
    Ok(())
}

/// Runs the trials whose name contains this, each suite on an emulated SVM host
/// of its own.
pub fn run(
    tree: &Tree,
    built: &Built,
    filter: &str,
    long: bool,
    relay: &mut dyn FnMut(&str),
) -> Result<()> {
    let debian = Debian::build(tree, &built.kernel)?;
    let all = long || filter != NAMES;
    Hosted {
        suites: if all { &SUITES } else { &SUITES[..ALWAYS] },
        before: SCRIPT,
        files: &files(built, &debian)?,
        disks: &[&debian.root, &debian.work, &debian.efi_disk].map(PathBuf::clone),
        patience: if long { LONG_PATIENCE } else { PATIENCE },
        long,
        resets: None,
    }
    .run(tree, built, filter, relay)
}

fn files(built: &Built, debian: &Debian) -> Result<Vec<(String, PathBuf)>> {
    let mut files = vec![
        ("/lab/guest/debian".to_owned(), debian.initramfs.clone()),
        ("/lab/guest/firmware".to_owned(), debian.firmware.clone()),
    ];
    for (index, path) in DISK_MODULES.iter().chain([&TUN]).enumerate() {
        let name = path.rsplit('/').next().unwrap_or(path);
        files.push((
            format!("/lab/drivers/{index}-{name}.ko"),
            built.kernel.stock_module(path)?,
        ));
    }
    Ok(files)
}
