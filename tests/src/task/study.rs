//! Records the boots of the study and writes its page and plots.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::build;
use crate::artifact::kernel::Series;
use crate::command::{command, output};
use crate::host::{self, Isa};
use crate::study::{self, Boot, CASE, CASE_EXITS, CASE_LINE, Case};
use crate::tree::Tree;

/// Runs the study on the emulated hosts of `isas`. A page of both replaces the
/// one in the documentation; a run on one host alone only shows its page.
pub fn study(tree: &Tree, isas: &[Isa], series: Series) -> Result<()> {
    let built = build(tree, series)?;
    let image = built.patched_host(tree)?;
    let folder = tree.lab().join("study");
    fs::create_dir_all(&folder).with_context(|| format!("Cannot make {}", folder.display()))?;
    let mut boots = BTreeMap::new();
    for &isa in isas {
        let name = isa.as_str();
        eprintln!(
            "lab: Recording boots on an emulated {} host",
            name.to_uppercase()
        );
        let logs = tree.fresh_log_dir(&format!("study-{name}"))?;
        let script = format!("exec lab-suites --isa {name} --modules patched study");
        let mut record = Record::default();
        let kernel = built.kernel.bzimage();
        let status = host::run(
            host::emulated(isa),
            &kernel,
            &image,
            &script,
            &logs,
            &mut |line| {
                record.line(line);
            },
        )?;
        ensure!(
            status == 0,
            "The study failed; its logs are in {}",
            logs.display()
        );
        for (case, lines) in record.finish()? {
            let recording = folder.join(format!("{name}-{}.jsonl", case.name()));
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
            boots.insert((name, case), Boot::read(&lines)?);
        }
    }
    let host = format!(
        "The hosts are emulated (Bochs for VMX, QEMU for SVM) and run Linux {} ({}) with our modules.",
        built.kernel.release, built.kernel.version
    );
    let page = study::render(&host, &boots);
    if isas.len() < 2 {
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
    fn finish(self) -> Result<Vec<(Case, Vec<String>)>> {
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
        ensure!(found.len() == Case::ALL.len(), "A case is missing");
        Ok(found)
    }
}
