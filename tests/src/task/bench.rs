//! Figures against peers and goals.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Built, build};
use crate::artifact::kernel::Series;
use crate::artifact::{guest_image::libraries, measures, peer};
use crate::bench::{Equipment, Figures, PEERS, Place, SECTIONS, Section, Verdict, boot, io};
use crate::host::{self, EmulatedHost, Isa, Job, Patience, Qemu};
use crate::progress::step;
use crate::tree::Tree;

/// The page that a whole run writes.
const PAGE: &str = "docs/benchmarks.md";

/// Measures, shows and judges. A run of everything renews the page in the
/// documents.
pub fn bench(
    tree: &Tree,
    isa: Option<Isa>,
    section: Option<&str>,
    peers: &[BenchPeer],
) -> Result<()> {
    let is_whole = isa.is_none() && section.is_none();
    let brought = brought_along(peers)?;
    let sections: Vec<&Section> = SECTIONS
        .iter()
        .filter(|candidate| section.is_none_or(|name| name == candidate.name))
        .collect();
    ensure!(
        !sections.is_empty(),
        "No section is called {}; there are {}",
        section.unwrap_or_default(),
        SECTIONS.map(|section| section.name).join(", ")
    );
    let mut figures = Figures::default();
    let mut built = None;
    for place in Place::ALL {
        if isa.is_some_and(|isa| isa != place.isa) {
            continue;
        }
        for equipment in [Equipment::None, Equipment::Measures] {
            let wanted: Vec<&str> = sections
                .iter()
                .filter(|section| (section.wants)(place) && section.equipment == equipment)
                .map(|section| section.name)
                .collect();
            if wanted.is_empty() {
                continue;
            }
            let built = match &built {
                Some(built) => built,
                None => built.insert(build(tree, Series::V6_1)?),
            };
            let attempts = match equipment {
                Equipment::None => 1,
                Equipment::Measures => ATTEMPTS,
            };
            again_unless_measured(attempts, || {
                measure(
                    tree,
                    built,
                    place,
                    equipment,
                    &wanted,
                    &brought,
                    &mut figures,
                )
            })?;
        }
    }
    for section in &sections {
        (section.here)(tree, &mut figures).with_context(|| format!("Section {}", section.name))?;
    }
    let mut verdict = Verdict::default();
    for section in sections {
        (section.judge)(&figures, &mut verdict)?;
    }
    let hosts = built.map(|built| {
        format!(
            "Linux {} ({}) on emulated hosts: Bochs for VMX, QEMU that counts instructions for SVM",
            built.kernel.release, built.kernel.version
        )
    });
    if let Some(hosts) = &hosts {
        println!("{hosts}");
    }
    print!("{}", verdict.text());
    if let (true, Some(hosts)) = (is_whole, hosts) {
        let page = tree.root().join(PAGE);
        let text = format!(
            "# Benchmarks\n\nWritten by `cargo lab bench`. {hosts}; both clocks count instructions, \
             so that figures repeat, but for those that are said to be of the machine at hand.\n{}",
            verdict.markdown()
        );
        fs::write(&page, text).with_context(|| format!("Cannot write {}", page.display()))?;
    }
    ensure!(
        verdict.missed().is_empty(),
        "Goals were missed:\n{}",
        verdict.missed().join("\n")
    );
    Ok(())
}

/// Another VMM with the command line of Cloud Hypervisor.
#[derive(Clone, Debug)]
pub struct BenchPeer {
    name: String,
    program: PathBuf,
}

impl FromStr for BenchPeer {
    type Err = String;

    /// Understands `NAME=PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, program) = text.split_once('=').ok_or("NAME=PATH is expected")?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let taken = [boot::QEMU, io::QEMU, io::OURS];
        if name.is_empty() || !name.bytes().all(is_name) || taken.contains(&name) {
            return Err(format!(
                "invalid name \"{name}\": letters, digits, '.', '_' and '-' are valid, but not {}",
                taken.join(", ")
            ));
        }
        Ok(BenchPeer {
            name: name.to_owned(),
            program: program.into(),
        })
    }
}

/// The peers with all that they need, by path in the host.
fn brought_along(peers: &[BenchPeer]) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for BenchPeer { name, program } in peers {
        ensure!(
            program.is_file(),
            "The peer {name} is not there: {}",
            program.display()
        );
        // A static program has none, of which ldd makes an error.
        for library in libraries(program).unwrap_or_default() {
            files.push((library.to_string_lossy().into_owned(), library));
        }
        files.push((format!("{PEERS}/{name}"), program.clone()));
    }
    Ok(files)
}

/// How often devices are measured until it works. In one run of five or so QEMU's
/// emulated CPU delivers an interrupt to a guest that has them off: the guest spins
/// for a lock that it holds, or dies of a double fault. Unmodified QEMU's guests do
/// so as ours, and on the distribution's modules, too, a run stood still.
const ATTEMPTS: u32 = 4;

/// How long nothing may come of such a run.
const SILENCE: Duration = Duration::from_secs(120);

fn again_unless_measured(attempts: u32, mut measure: impl FnMut() -> Result<()>) -> Result<()> {
    for _ in 1..attempts {
        match measure() {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("lab: {error:#}; measuring again"),
        }
    }
    measure()
}

fn measure(
    tree: &Tree,
    built: &Built,
    place: Place,
    equipment: Equipment,
    sections: &[&str],
    brought: &[(String, PathBuf)],
    figures: &mut Figures,
) -> Result<()> {
    let image = if place.patched {
        built.patched_host(tree)?
    } else {
        built.stock_host(tree)?
    };
    let (files, suffix) = match equipment {
        Equipment::None if sections.contains(&boot::NAME) => {
            // Debian's QEMU is shown where figures repeat. The same libraries may be
            // needed by both, and a path is packed once.
            let mut files: BTreeMap<_, _> = brought.iter().cloned().collect();
            if place.isa == Isa::Svm {
                files.extend(peer::files()?);
            }
            (files.into_iter().collect(), "")
        }
        Equipment::None => (Vec::new(), ""),
        Equipment::Measures => {
            let mut files: BTreeMap<_, _> = brought.iter().cloned().collect();
            files.extend(measures::files(tree, &built.kernel)?);
            (files.into_iter().collect(), "-measures")
        }
    };
    let host: &dyn EmulatedHost = match (place.isa, equipment) {
        (Isa::Svm, Equipment::None) => &Qemu::COUNTED,
        (Isa::Svm, Equipment::Measures) => &Qemu::COUNTED_TICKING,
        (Isa::Vmx, _) => host::emulated(Isa::Vmx),
    };
    let name = format!("bench-{}-{}{suffix}", place.isa.as_str(), place.modules());
    let logs = tree.fresh_log_dir(&name)?;
    let script = format!(
        "exec lab-suites --isa {} --modules {} bench {}",
        place.isa.as_str(),
        place.modules(),
        sections.join(" ")
    );
    let job = Job {
        script: &script,
        files: &files,
        patience: match equipment {
            Equipment::None => Patience::Whole(host.deadline()),
            Equipment::Measures => Patience::Silence(SILENCE),
        },
        disks: &[],
    };
    let mut outcome = Ok(());
    let status = step(
        &format!(
            "Measuring {} on {}, {} KVM",
            sections.join(", "),
            place.isa.as_str().to_uppercase(),
            place.modules()
        ),
        || {
            let kernel = built.kernel.bzimage();
            host::run_job(
                host,
                &kernel,
                &image,
                &job,
                &logs,
                &mut |line| match figures.line(place, line) {
                    Ok(true) => {}
                    Ok(false) => eprintln!("{line}"),
                    Err(error) => outcome = Err(error),
                },
            )
        },
    )?;
    ensure!(
        status == 0,
        "Measuring failed; its logs are in {}",
        logs.display()
    );
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_a_name_and_a_program() {
        let peer: BenchPeer = "ch-54.0=/opt/ch".parse().unwrap();
        assert_eq!(
            (peer.name.as_str(), peer.program),
            ("ch-54.0", "/opt/ch".into())
        );
        for text in ["/opt/ch", "=/opt/ch", "a/b=/opt/ch", "ours=/opt/ch"] {
            assert!(text.parse::<BenchPeer>().is_err(), "{text}");
        }
        let missing = "ch=/nonexistent/ch".parse().unwrap();
        assert!(brought_along(&[missing]).is_err());
    }
}
