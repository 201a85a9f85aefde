//! The kernel's own tests of KVM, on stock modules and on ours.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::{Built, build};
use crate::artifact::kernel::Series;
use crate::artifact::selftests::{self as programs, Selftest};
use crate::host::Isa;
use crate::selftests::{Comparison, Outcome, Runner, write_page};
use crate::tree::Tree;

/// Those that look at what we changed: statistics, CPUID, exits to user space,
/// nested state. Each passes on stock modules in seconds.
const FEW: [&str; 6] = [
    "kvm_binary_stats_test",
    "x86_64/cpuid_test",
    "x86_64/hyperv_cpuid",
    "x86_64/state_test",
    "x86_64/sync_regs_test",
    "x86_64/userspace_msr_exit_test",
];

/// How much longer than on stock modules a program may take on ours: an emulator
/// on a busy machine is not equally fast all the time. A second try is for the
/// unsteady ones.
const PATIENCE: [u32; 2] = [2, 4];

/// Compares all programs on hosts of these instruction sets.
pub fn selftests(tree: &Tree, isas: &[Isa], series: Series) -> Result<()> {
    let built = build(tree, series)?;
    let all = programs::build(tree, &built.kernel)?;
    let mut lost = Vec::new();
    for &isa in isas {
        let comparison = compare(tree, &built, isa, &all)?;
        comparison.save(tree, isa, series)?;
        lost.extend(
            comparison
                .lost()
                .into_iter()
                .map(|name| format!("{} ({})", name, isa.as_str())),
        );
    }
    println!("{}", write_page(tree)?.display());
    ensure!(
        lost.is_empty(),
        "These pass on stock modules and not on ours: {}",
        lost.join(", ")
    );
    Ok(())
}

/// The few that `cargo lab test` runs, on our modules.
pub fn few(tree: &Tree, built: &Built) -> Result<()> {
    let all = programs::build(tree, &built.kernel)?;
    let few = chosen(&all, |name| FEW.contains(&name));
    ensure!(few.len() == FEW.len(), "Some of {FEW:?} are not built");
    let found = run(tree, built, Isa::Svm, true, &few, 1)?;
    let failed: Vec<_> = found
        .iter()
        .filter(|(_, outcome)| **outcome != Outcome::Pass)
        .map(|(name, outcome)| format!("{name}: {}", outcome.as_str()))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join(", "));
    Ok(())
}

fn compare(tree: &Tree, built: &Built, isa: Isa, all: &[Selftest]) -> Result<Comparison> {
    let mut comparison = Comparison {
        version: built.kernel.version.clone(),
        stock: run(tree, built, isa, false, all, 1)?,
        ours: BTreeMap::new(),
    };
    for patience in PATIENCE {
        let lost: Vec<String> = comparison.lost().into_iter().map(str::to_owned).collect();
        if lost.is_empty() {
            break;
        }
        let again = chosen(all, |name| lost.iter().any(|lost| lost == name));
        comparison
            .ours
            .extend(run(tree, built, isa, true, &again, patience)?);
    }
    Ok(comparison)
}

fn chosen(all: &[Selftest], wanted: impl Fn(&str) -> bool) -> Vec<Selftest> {
    all.iter()
        .filter(|program| wanted(&program.name))
        .cloned()
        .collect()
}

fn run(
    tree: &Tree,
    built: &Built,
    isa: Isa,
    patched: bool,
    programs: &[Selftest],
    patience: u32,
) -> Result<BTreeMap<String, Outcome>> {
    let (image, modules) = if patched {
        (built.patched_host(tree)?, "our")
    } else {
        (built.stock_host(tree)?, "stock")
    };
    println!(
        "\n== {} selftests on emulated {} hosts, Linux {}, {modules} modules ==",
        programs.len(),
        isa.as_str().to_uppercase(),
        built.kernel.release
    );
    let logs = tree.fresh_log_dir(&format!(
        "selftests-{}-{}-{modules}",
        isa.as_str(),
        built.kernel.series
    ))?;
    let runner = Runner {
        isa,
        kernel: &built.kernel,
        image: &image,
        logs: &logs,
        patience,
    };
    runner.run(programs, &mut |name, outcome| {
        println!("test selftests::{name} ... {}", outcome.as_str());
    })
}
