//! Everything that must hold.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};

use super::selftests::few as few_selftests;
use super::{Built, as_built, build, debian, guests, load};
use crate::artifact::guide;
use crate::artifact::kernel::Series;
use crate::artifact::peer;
use crate::check;
use crate::command::{command, output, visible};
use crate::host::{self, Isa, Job, Patience, Qemu, bare as this_machine};
use crate::progress::seconds;
use crate::tools;
use crate::tree::Tree;

/// What of it to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only what takes a few minutes: one host, SVM.
    pub quick: bool,
    /// Only trials of the suites whose name contains this, no other checks.
    pub filter: Option<String>,
    /// Only hosts of this instruction set.
    pub isa: Option<Isa>,
    /// Only hosts that run a kernel of this series.
    pub series: Option<Series>,
    /// Modules and programs as an earlier build left them.
    pub as_built: bool,
}

/// One boot of a host and the suites in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Round {
    isa: Isa,
    series: Series,
    patched: bool,
    /// On a host with two CPUs, this suite alone.
    two_cpus: Option<&'static str>,
}

/// The slow ones first: they run while the others do.
const ROUNDS: [Round; 8] = [
    Round {
        isa: Isa::Vmx,
        series: Series::V6_1,
        patched: true,
        two_cpus: None,
    },
    Round {
        isa: Isa::Vmx,
        series: Series::V6_12,
        patched: true,
        two_cpus: None,
    },
    Round {
        isa: Isa::Vmx,
        series: Series::V7_3,
        patched: true,
        two_cpus: None,
    },
    Round {
        isa: Isa::Svm,
        series: Series::V6_1,
        patched: true,
        two_cpus: None,
    },
    Round {
        isa: Isa::Svm,
        series: Series::V6_1,
        patched: false,
        two_cpus: None,
    },
    Round {
        isa: Isa::Svm,
        series: Series::V6_1,
        patched: true,
        two_cpus: Some("isolation"),
    },
    Round {
        isa: Isa::Svm,
        series: Series::V6_12,
        patched: true,
        two_cpus: None,
    },
    Round {
        isa: Isa::Svm,
        series: Series::V7_3,
        patched: true,
        two_cpus: None,
    },
];

impl Round {
    fn modules(self) -> &'static str {
        if self.patched { "patched" } else { "stock" }
    }

    fn name(self) -> String {
        let name = format!(
            "{}-{}-{}",
            self.isa.as_str(),
            self.series.as_str(),
            self.modules()
        );
        match self.two_cpus {
            Some(suite) => format!("{name}-two-cpus-{suite}"),
            None => name,
        }
    }

    fn is_wanted(self, options: &Options) -> bool {
        let is_quick = self.isa == Isa::Svm
            && self.series == Series::V6_1
            && self.patched
            && self.two_cpus.is_none();
        options.isa.is_none_or(|isa| isa == self.isa)
            // 7.3 when it is asked for: it doubles what a run takes.
            && options
                .series
                .map_or(self.series != Series::V7_3, |series| series == self.series)
            && (!options.quick || is_quick)
            && match (&options.filter, self.two_cpus) {
                (Some(filter), Some(suite)) => filter.starts_with(suite),
                _ => true,
            }
    }

    /// Whether another VMM is to run on it too.
    fn has_peer(self) -> bool {
        self.patched && self.two_cpus.is_none()
    }

    fn image(self, tree: &Tree, built: &Built) -> Result<PathBuf> {
        if self.patched {
            built.patched_host(tree)
        } else {
            built.stock_host(tree)
        }
    }

    fn run(
        self,
        tree: &Tree,
        built: &Built,
        options: &Options,
        relay: &mut dyn FnMut(String),
    ) -> Result<()> {
        let image = self.image(tree, built)?;
        let logs = tree.fresh_log_dir(&self.name())?;
        let filter = options.filter.as_deref().or(self.two_cpus);
        let filter = filter.unwrap_or_default();
        let script = format!(
            "exec lab-suites --isa {} --modules {} run '{}'",
            self.isa.as_str(),
            self.modules(),
            filter.replace('\'', "")
        );
        let started = Instant::now();
        let kernel = built.kernel.bzimage();
        let host = match self.two_cpus {
            Some(_) => &Qemu::TWO_CPUS,
            None => host::emulated(self.isa),
        };
        let mut files = if self.has_peer() {
            peer::files()?
        } else {
            Vec::new()
        };
        files.push((
            format!("/lab/{}", guide::IN_ROOT),
            guide::c_program(tree, self.isa)?,
        ));
        let job = Job {
            script: &script,
            files: &files,
            patience: Patience::Whole(host.deadline()),
            disks: &[],
        };
        let status = host::run_job(host, &kernel, &image, &job, &logs, &mut |line| {
            relay(line.to_owned());
        })?;
        relay(format!(
            "(the whole round took {})",
            seconds(started.elapsed())
        ));
        ensure!(status == 0, "Trials failed; logs are in {}", logs.display());
        Ok(())
    }
}

/// Runs it all; an error tells which parts failed.
pub fn test(tree: &Tree, options: &Options) -> Result<()> {
    let started = Instant::now();
    let mut failed: Vec<String> = Vec::new();
    let mut part = |name: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            eprintln!("lab: {name}: {error:#}");
            failed.push(name.to_owned());
        }
    };
    let trials = AtomicUsize::new(0);
    let show = |line: &str| {
        println!("{line}");
        trials.fetch_add(usize::from(is_outcome(line)), Ordering::Relaxed);
    };
    let whole = options.filter.is_none();
    if whole {
        heading("habits");
        part("habits", habits(tree));
    }
    let make = if options.as_built { as_built } else { build };
    let rounds: Vec<Round> = ROUNDS
        .into_iter()
        .filter(|round| round.is_wanted(options))
        .collect();
    let with_debian = wants_debian(options);
    // What is looked for by the name of Debian's trials is nowhere else.
    let rounds = if with_debian && !whole {
        Vec::new()
    } else {
        rounds
    };
    ensure!(!rounds.is_empty() || with_debian, "No host is of that kind");
    let mut builds = BTreeMap::new();
    for round in &rounds {
        let built = match builds.entry(round.series) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(make(tree, round.series)?),
        };
        // Prepared here, so that two rounds never make the same image at once.
        round.image(tree, built)?;
    }
    let (slow, quick): (Vec<Round>, Vec<Round>) =
        rounds.into_iter().partition(|round| round.isa == Isa::Vmx);

    thread::scope(|scope| {
        let (lines, slow_lines) = mpsc::channel();
        let builds = &builds;
        let background = scope.spawn(move || {
            let mut outcomes = Vec::new();
            for round in slow {
                let built = &builds[&round.series];
                let _ = lines.send(title(round, built));
                let outcome = round.run(tree, built, options, &mut |line| {
                    // The receiver lives until the sender is dropped.
                    let _ = lines.send(line);
                });
                outcomes.push((round, outcome));
            }
            outcomes
        });
        if whole {
            heading("clippy");
            part("clippy", cargo(tree, &CLIPPY));
            heading("unit tests");
            part(
                "unit tests",
                visible(
                    command("cargo", ["test", "--workspace", "--no-fail-fast"])
                        // The lab has installed it.
                        .env("REQUIRE_QEMU_IMG", "1")
                        .current_dir(tree.root()),
                ),
            );
            heading("operators' programs");
            part("operators' programs", tools::check(tree));
            heading("64 clients");
            part("64 clients", load::short_load(tree));
        }
        if whole && !options.quick {
            heading("gates of the kernel");
            part("gates of the kernel", check::kernel_gates(tree));
            heading("a few of the kernel's selftests");
            if let Some(built) = builds.get(&Series::V6_1) {
                part("selftests", few_selftests(tree, built));
            }
        }
        for round in quick {
            let built = &builds[&round.series];
            println!("{}", title(round, built));
            part(
                &round.name(),
                round.run(tree, built, options, &mut |line| show(&line)),
            );
        }
        if with_debian {
            heading("Debian as a guest on emulated SVM hosts");
            part("Debian", debian_round(tree, builds, options, &show));
        }
        if whole && !options.quick && with_debian {
            heading("other payloads as guests on an emulated SVM host");
            if let Some(built) = builds.get(&Series::V6_1) {
                let outcome = guests::run(
                    tree,
                    built,
                    guests::SHORT,
                    &guests::Options::default(),
                    &mut |line| show(line),
                );
                part("guests", outcome);
            }
        }
        for line in slow_lines {
            show(&line);
        }
        match background.join() {
            Ok(outcomes) => {
                for (round, outcome) in outcomes {
                    part(&round.name(), outcome);
                }
            }
            Err(_) => part("vmx", Err(anyhow::anyhow!("The lab itself panicked"))),
        }
    });
    ensure!(failed.is_empty(), "Failed: {}", failed.join(", "));
    if let Some(filter) = &options.filter {
        ensure_found(filter, trials.into_inner())?;
    }
    println!("\nlab: everything holds, in {}", seconds(started.elapsed()));
    Ok(())
}

/// Whether this line of a host's is the outcome of one trial.
pub(super) fn is_outcome(line: &str) -> bool {
    line.starts_with("test ") && line.contains(" ... ")
}

/// A name that is nobody's is a mistake, not a success.
pub(super) fn ensure_found(filter: &str, trials: usize) -> Result<()> {
    ensure!(trials > 0, "No trial's name contains {filter:?}");
    Ok(())
}

/// Whether Debian's rounds are wanted: SVM, 6.1, not the quickest.
fn wants_debian(options: &Options) -> bool {
    options.isa.is_none_or(|isa| isa == Isa::Svm)
        && options.series.is_none_or(|series| series == Series::V6_1)
        && match &options.filter {
            Some(filter) => filter.starts_with(debian::NAMES),
            None => !options.quick,
        }
}

fn debian_round(
    tree: &Tree,
    builds: &BTreeMap<Series, Built>,
    options: &Options,
    show: &dyn Fn(&str),
) -> Result<()> {
    let started = Instant::now();
    let made;
    let built = match builds.get(&Series::V6_1) {
        Some(built) => built,
        None => {
            made = (if options.as_built { as_built } else { build })(tree, Series::V6_1)?;
            &made
        }
    };
    let filter = options.filter.as_deref().unwrap_or(debian::NAMES);
    let outcome = debian::run(tree, built, filter, false, &mut |line| show(line));
    println!("(the whole round took {})", seconds(started.elapsed()));
    outcome
}

const CLIPPY: [&str; 6] = [
    "clippy",
    "--workspace",
    "--all-targets",
    "--quiet",
    "--",
    "-Dwarnings",
];

/// Checks of the source that take no time, as trials with a result line.
fn habits(tree: &Tree) -> Result<()> {
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::default()
    };
    let trial = |name: &str, check: fn(&Tree) -> Result<()>| {
        let tree = tree.clone();
        Trial::test(name, move || {
            check(&tree).map_err(|error| format!("{error:#}").into())
        })
    };
    let trials = vec![
        trial("habits::source_is_formatted", |tree| {
            output(command("cargo", ["fmt", "--all", "--check"]).current_dir(tree.root())).map(drop)
        }),
        trial(
            "habits::c_table_is_what_the_rust_tables_make",
            check::table_is_current,
        ),
        trial(
            "habits::modules_of_the_vmm_name_only_what_is_below",
            check::arrows_point_down,
        ),
        trial(
            "habits::links_of_the_documents_resolve",
            check::links_of_the_documents_resolve,
        ),
        trial(
            "habits::commit_subjects_name_an_area",
            check::subjects_name_an_area,
        ),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    ensure!(
        !conclusion.has_failed(),
        "{} habits are broken",
        conclusion.num_failed
    );
    Ok(())
}

fn cargo(tree: &Tree, args: &[&str]) -> Result<()> {
    visible(command("cargo", args).current_dir(tree.root()))
}

fn heading(name: &str) {
    println!("\n== {name} ==");
}

fn title(round: Round, built: &Built) -> String {
    format!(
        "\n== suites on an emulated {} host{}, Linux {}, {} KVM ==",
        round.isa.as_str().to_uppercase(),
        round.two_cpus.map_or("", |_| " with two CPUs"),
        built.kernel.release,
        round.modules()
    )
}

/// Runs the suites on this very machine, which must have our modules loaded.
pub fn bare(tree: &Tree, filter: Option<&str>) -> Result<()> {
    let isa = this_machine::isa()?;
    if !rustix::process::geteuid().is_root() {
        bail!("The suites read tracefs and debugfs: run them as root");
    }
    let built = build(tree, Series::V6_1)?;
    let root = tree.lab().join("bare");
    let guest = root.join("guest");
    for folder in [&guest, &root.join("guide")] {
        fs::create_dir_all(folder).with_context(|| format!("Cannot make {}", folder.display()))?;
    }
    for (target, link) in [
        (tree.bin(), root.join("bin")),
        (built.kernel.bzimage(), guest.join("vmlinuz")),
        (built.guest, guest.join("initramfs")),
        (guide::c_program(tree, isa)?, root.join(guide::IN_ROOT)),
    ] {
        let _ = fs::remove_file(&link);
        symlink(&target, &link).with_context(|| format!("Cannot link {}", link.display()))?;
    }
    let mut suites = command(
        &tree.bin().join("lab-suites").to_string_lossy(),
        ["--shared", "--isa", isa.as_str(), "--modules", "patched"],
    );
    suites.arg("--root").arg(&root).arg("run").args(filter);
    visible(&mut suites)
}
