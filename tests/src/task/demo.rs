//! The main job from nothing to a table of exits.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::build;
use crate::artifact::kernel::Series;
use crate::host::{self, Isa};
use crate::progress::seconds;
use crate::report::Report;
use crate::tree::Tree;

/// Builds, boots a host, boots a guest in it and shows its exits.
pub fn demo(tree: &Tree, isa: Isa, series: Series) -> Result<()> {
    let started = Instant::now();
    let built = build(tree, series)?;
    let image = built.patched_host(tree)?;
    let logs = tree.fresh_log_dir(&format!("demo-{}", isa.as_str()))?;
    let host = host::emulated(isa);
    eprintln!(
        "lab: Booting an emulated {} host, then Linux in our VMM ({})",
        isa.as_str().to_uppercase(),
        match isa {
            Isa::Vmx => "Bochs: about two minutes",
            Isa::Svm => "QEMU: about ten seconds",
        }
    );
    let script = format!(
        "exec lab-suites --isa {} --modules patched demo",
        isa.as_str()
    );
    let mut report = Report::new();
    let status = host::run(
        host,
        &built.kernel.bzimage(),
        &image,
        &script,
        &logs,
        &mut |line| {
            println!("{}", report.line(line));
        },
    )?;
    ensure!(
        status == 0,
        "The demonstration failed; its logs are in {}",
        logs.display()
    );
    let path = report.write(tree, isa, &built.kernel)?;
    println!("\nReport: {}", path.display());
    eprintln!("lab: done in {}", seconds(started.elapsed()));
    Ok(())
}
