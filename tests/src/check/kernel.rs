//! The kernel's own gates on the kernel side: its style checker, its
//! documentation checker, sparse, and all warnings as errors.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};

use crate::artifact::kernel::{Kernel, Series};
use crate::artifact::modules::{KVM_FOLDER, Sources, make, patched_tree};
use crate::artifact::packages::ensure_installed;
use crate::command::{command, output};
use crate::tree::Tree;

/// What the names of all our files begin with.
const OURS: &str = "exit_stats";

/// Objects that include our header or are our own. Sparse looks at them all,
/// and what it says about our lines counts.
const OBJECTS: [&str; 12] = [
    "exit_stats.o",
    "exit_stats_counters.o",
    "exit_stats_debugfs.o",
    "exit_stats_guest.o",
    "exit_stats_latency.o",
    "exit_stats_reasons.o",
    "exit_stats_switches.o",
    "x86.o",
    "cpuid.o",
    "debugfs.o",
    "vmx/vmx.o",
    "svm/svm.o",
];

/// Words that a clean run of the checkers never prints.
const COMPLAINTS: [&str; 5] = ["WARNING:", "ERROR:", "CHECK:", "warning:", "error:"];

type Gate = fn(&Place) -> Result<()>;

const GATES: [(&str, Gate); 4] = [
    ("our_files_build_with_w1_and_werror", Place::warnings),
    ("sparse_is_silent_on_our_files", Place::sparse),
    ("checkpatch_strict_is_silent", Place::checkpatch),
    ("kernel_doc_is_silent", Place::kernel_doc),
];

/// Passes our files through the gates of every series.
pub fn kernel_gates(tree: &Tree) -> Result<()> {
    ensure_installed()?;
    let mut trials = Vec::new();
    // Not 7.3: its sparse is newer than Debian 12's, and its checkpatch wants what 6.1
    // does not have. `cargo lab kernels` builds it.
    for series in [Series::V6_1, Series::V6_12] {
        let place = Place::of(tree, series)?;
        for (name, gate) in GATES {
            let place = place.clone();
            trials.push(Trial::test(
                format!("gates_{}::{name}", series.as_str()),
                move || gate(&place).map_err(|error| format!("{error:#}").into()),
            ));
        }
    }
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::default()
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    ensure!(
        !conclusion.has_failed(),
        "{} gates are closed",
        conclusion.num_failed
    );
    Ok(())
}

#[derive(Clone)]
struct Place {
    kernel: Kernel,
    /// The kernel's source with our files and hooks.
    work: PathBuf,
    /// Our files and hooks where they are written.
    files: Vec<PathBuf>,
    patch: PathBuf,
}

impl Place {
    fn of(tree: &Tree, series: Series) -> Result<Place> {
        let kernel = Kernel::fetch(tree, series)?;
        let sources = Sources::find(tree, &kernel)?;
        let work = patched_tree(tree, &kernel)?;
        Ok(Place {
            kernel,
            work,
            files: sources.files,
            patch: sources.patch,
        })
    }

    /// Debian switches off KVM's own -Werror for 6.12, so it is said here.
    fn warnings(&self) -> Result<()> {
        let own = OBJECTS.iter().filter(|object| object.starts_with(OURS));
        output(
            make(&self.kernel, &self.work)
                .args([&format!("M={KVM_FOLDER}"), "W=1", "KCFLAGS=-Werror"])
                .args(own),
        )
        .map(drop)
    }

    fn sparse(&self) -> Result<()> {
        // Sparse writes to standard error, make's own lines go to the other.
        let mut check = make(&self.kernel, &self.work);
        check
            .args([&format!("M={KVM_FOLDER}"), "C=2"])
            .args(OBJECTS);
        let out = check.output().context("Cannot start make")?;
        let steps = String::from_utf8_lossy(&out.stdout);
        let said = String::from_utf8_lossy(&out.stderr);
        let looked = steps
            .lines()
            .filter(|line| line.contains(" CHECK "))
            .count();
        ensure!(
            out.status.success() && looked == OBJECTS.len(),
            "Sparse looked at {looked} of {} files\n{said}",
            OBJECTS.len()
        );
        let about_us: Vec<&str> = said.lines().filter(|line| line.contains(OURS)).collect();
        ensure!(about_us.is_empty(), "{}", about_us.join("\n"));
        Ok(())
    }

    fn checkpatch(&self) -> Result<()> {
        for file in &self.files {
            self.script("checkpatch.pl", &["--strict", "--no-tree", "-f"], file)?;
        }
        // By its name, a patch that git tracks would be read as source.
        let patch = &self.patch;
        let mut check = self.perl("checkpatch.pl");
        check
            .args(["--strict", "--no-tree", "--no-signoff", "-"])
            .stdin(File::open(patch).with_context(|| format!("Cannot open {}", patch.display()))?);
        let out = check.output().context("Cannot start perl")?;
        ensure!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stdout)
        );
        Ok(())
    }

    fn kernel_doc(&self) -> Result<()> {
        for file in &self.files {
            self.script("kernel-doc", &["-none"], file)?;
        }
        Ok(())
    }

    /// Runs a script of the kernel on a file; whatever it complains of counts,
    /// also where its status does not.
    fn script(&self, name: &str, options: &[&str], file: &Path) -> Result<()> {
        let out = self
            .perl(name)
            .args(options)
            .arg(file)
            .output()
            .context("Cannot start perl")?;
        let mut said = String::from_utf8_lossy(&out.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&out.stderr));
        let complains = COMPLAINTS.iter().any(|word| said.contains(word));
        ensure!(
            out.status.success() && !complains,
            "{}: {said}",
            file.display()
        );
        Ok(())
    }

    fn perl(&self, name: &str) -> std::process::Command {
        let mut perl = command("perl", [self.work.join("scripts").join(name)]);
        perl.current_dir(&self.work);
        perl
    }
}
