//! Debian as a guest on an emulated host.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::test::{ensure_found, is_outcome};
use super::{Built, as_built, build};
use crate::artifact::debian::{DISK_MODULES, Debian};
use crate::artifact::kernel::Series;
use crate::host::{self, Isa, Job, Patience, Qemu};
use crate::progress::seconds;
use crate::tree::Tree;

/// What the host does: gets its disks, and shows Debian's programs what they
/// need to see.
const SCRIPT: &str = include_str!("debian-host.sh");

/// What the names of the trials begin with.
pub const NAMES: &str = "debian";

/// The suites, each with the host that it runs on.
const SUITES: [(&str, &Qemu); 2] = [
    ("debian::", &Qemu::ONE_CPU),
    ("debian_on_two_cpus::", &Qemu::TWO_CPUS),
];

/// What the host loads besides: its disks' drivers and the tap.
const TUN: &str = "drivers/net/tun";

/// How long one trial may take, and how long with large amounts.
const PATIENCE: Duration = Duration::from_secs(600);
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

/// The part of a filter that is of a suite, if there is one.
fn part<'a>(filter: &'a str, suite: &'a str) -> Option<&'a str> {
    if suite.starts_with(filter) {
        return Some(suite);
    }
    (filter.starts_with(suite) || !filter.contains("::")).then_some(filter)
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
    let image = built.patched_host(tree)?;
    let mut failed = Vec::new();
    for (suite, host) in SUITES {
        let Some(filter) = part(filter, suite) else {
            continue;
        };
        let name = suite.trim_end_matches(':').replace('_', "-");
        let logs = tree.fresh_log_dir(&if long { format!("{name}-long") } else { name })?;
        let script = format!(
            "{SCRIPT}exec lab-suites --isa {} --modules patched {} run '{}'\n",
            Isa::Svm.as_str(),
            if long { "--long" } else { "" },
            filter.replace('\'', "")
        );
        let job = Job {
            script: &script,
            files: &files(built, &debian)?,
            patience: Patience::Silence(if long { LONG_PATIENCE } else { PATIENCE }),
            disks: &[&debian.root, &debian.work, &debian.efi_disk].map(PathBuf::clone),
        };
        let status = host::run_job(host, &built.kernel.bzimage(), &image, &job, &logs, relay);
        match status {
            Ok(0) => {}
            Ok(_) => failed.push(format!("Trials failed; logs are in {}", logs.display())),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
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
