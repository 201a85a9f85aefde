//! Records the boots of the study and writes its page and plots.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{Built, build};
use crate::artifact::kernel::Series;
use crate::artifact::peer;
use crate::command::{command, output};
use crate::host::{self, Bochs, EmulatedHost, Isa, Job, Patience, Qemu};
use crate::study::{self, Boot, CASE, CASE_EXITS, CASE_LINE, Case};
use crate::tree::Tree;

/// A host and the boots that are recorded on it.
struct Place {
    isa: Isa,
    host: &'static dyn EmulatedHost,
    cases: &'static [Case],
}

/// On SVM the boots of one vCPU are recorded where the clock counts
/// instructions: how many interrupts they take, and so how they compare, does
/// not depend on how busy this machine is. Four vCPUs do not get far there.
const PLACES: [Place; 3] = [
    Place {
        isa: Isa::Svm,
        host: &Qemu::COUNTED,
        cases: &[Case::OneVcpu, Case::Qemu],
    },
    Place {
        isa: Isa::Svm,
        host: &Qemu::ONE_CPU,
        cases: &[Case::FourVcpus, Case::ShadowPaging],
    },
    Place {
        isa: Isa::Vmx,
        host: &Bochs,
        cases: &[Case::OneVcpu, Case::FourVcpus, Case::ShadowPaging],
    },
];

/// Runs the study on the emulated hosts of `isas`. What is not run is taken
/// from its latest recording. A page of all of it replaces the one in the
/// documentation; where recordings are missing the page is only shown.
pub fn study(tree: &Tree, isas: &[Isa], series: Series) -> Result<()> {
    let built = build(tree, series)?;
    let image = built.patched_host(tree)?;
    let folder = tree.lab().join("study");
    fs::create_dir_all(&folder).with_context(|| format!("Cannot make {}", folder.display()))?;
    for (index, place) in PLACES.iter().enumerate() {
        if isas.contains(&place.isa) {
            let name = place.isa.as_str();
            eprintln!(
                "lab: Recording boots on an emulated {} host",
                name.to_uppercase()
            );
            let logs = tree.fresh_log_dir(&format!("study-{name}-{index}"))?;
            place.record(tree, &built, &image, &folder, &logs)?;
        }
    }
    let mut boots = BTreeMap::new();
    let mut is_whole = true;
    for place in &PLACES {
        for &case in place.cases {
            match fs::read_to_string(recording(&folder, place.isa, case)) {
                Ok(text) => {
                    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
                    boots.insert((place.isa.as_str(), case), Boot::read(&lines)?);
                }
                Err(_) => is_whole = false,
            }
        }
    }
    let host = format!(
        "The hosts are emulated (Bochs for VMX; QEMU for SVM, which counts instructions for a clock \
         where one vCPU boots) and run Linux {} ({}) with our modules.",
        built.kernel.release, built.kernel.version
    );
    let page = study::render(&host, &boots);
    if !is_whole {
        println!("{page}");
        return Ok(());
    }
    let docs = tree.root().join("docs");
    let plots = docs.join("boot-exit-study");
    fs::create_dir_all(&plots).with_context(|| format!("Cannot make {}", plots.display()))?;
    for (isa, case) in boots.keys() {
        let name = format!("{isa}-{}.svg", case.name());
        fs::copy(folder.join(&name), plots.join(&name)).context("Cannot copy a plot")?;
    }
    let path = docs.join("boot-exit-study.md");
    fs::write(&path, page).with_context(|| format!("Cannot write {}", path.display()))?;
    println!("{}", path.display());
    println!("reports and recordings: {}", folder.display());
    Ok(())
}

/// Where a boot is recorded.
fn recording(folder: &Path, isa: Isa, case: Case) -> PathBuf {
    folder.join(format!("{}-{}.jsonl", isa.as_str(), case.name()))
}

impl Place {
    /// Records its boots and draws them.
    fn record(
        &self,
        tree: &Tree,
        built: &Built,
        image: &Path,
        folder: &Path,
        logs: &Path,
    ) -> Result<()> {
        let names: Vec<&str> = self.cases.iter().map(|case| case.name()).collect();
        let script = format!(
            "exec lab-suites --isa {} --modules patched study {}",
            self.isa.as_str(),
            names.join(" ")
        );
        let files = if self.cases.contains(&Case::Qemu) {
            peer::files()?
        } else {
            Vec::new()
        };
        let job = Job {
            script: &script,
            files: &files,
            disks: &[],
            patience: Patience::Whole(self.host.deadline()),
        };
        let kernel = built.kernel.bzimage();
        let mut record = Record::default();
        let status = host::run_job(self.host, &kernel, image, &job, logs, &mut |line| {
            record.line(line);
        })?;
        ensure!(
            status == 0,
            "The study failed; its logs are in {}",
            logs.display()
        );
        for (case, lines) in record.finish(self.cases)? {
            let recording = recording(folder, self.isa, case);
            fs::write(&recording, lines.join("\n") + "\n")
                .with_context(|| format!("Cannot write {}", recording.display()))?;
            for form in ["html", "svg"] {
                let ch_remote = tree.bin().join("ch-remote");
                let drawn = recording.with_extension(form);
                output(&mut command(
                    &ch_remote.display().to_string(),
                    [
                        "exit-stats".as_ref(),
                        "report".as_ref(),
                        recording.as_os_str(),
                        "-o".as_ref(),
                        drawn.as_os_str(),
                    ],
                ))?;
            }
        }
        Ok(())
    }
}

/// What the host prints, sorted by case.
#[derive(Default)]
struct Record {
    cases: Vec<(String, Vec<String>, Option<u64>)>,
}

impl Record {
    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix(CASE) {
            eprintln!("lab:   {name}");
            self.cases.push((name.to_owned(), Vec::new(), None));
        } else if let Some((_, lines, exits)) = self.cases.last_mut() {
            if let Some(line) = line.strip_prefix(CASE_LINE) {
                lines.push(line.to_owned());
            } else if let Some(count) = line.strip_prefix(CASE_EXITS) {
                *exits = count.trim().parse().ok();
            } else {
                eprintln!("{line}");
            }
        } else {
            eprintln!("{line}");
        }
    }

    /// The recordings, each held against KVM's own count of the same boot.
    fn finish(self, cases: &[Case]) -> Result<Vec<(Case, Vec<String>)>> {
        let mut found = Vec::new();
        for (name, lines, exits) in self.cases {
            let Some(case) = Case::from_name(&name) else {
                bail!("No case is called {name}");
            };
            let boot = Boot::read(&lines).with_context(|| format!("Case {name}"))?;
            ensure!(
                Some(boot.exits) == exits,
                "Case {name}: {} exits recorded, KVM counts {exits:?}",
                boot.exits
            );
            found.push((case, lines));
        }
        ensure!(found.len() == cases.len(), "A case is missing");
        Ok(found)
    }
}
