//! The programs, static as `cargo lab build` makes them, with manual pages,
//! completions and documents.

mod life;
mod stage;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use self::stage::Stage;
use super::{Recipe, VERSION};
use crate::artifact::binaries;
use crate::artifact::stamp::files_below;
use crate::command::{command, output, text};
use crate::tree::Tree;

pub(super) const VMM: Recipe = Recipe {
    name: VMM_CONTENTS.package,
    make: |tree, folder| make(&VMM_CONTENTS, tree, folder),
    life: Some(|tree, package, release| life::test(&VMM_CONTENTS, tree, package, release)),
};

pub(super) const GUEST: Recipe = Recipe {
    name: GUEST_CONTENTS.package,
    make: |tree, folder| make(&GUEST_CONTENTS, tree, folder),
    life: Some(|tree, package, release| life::test(&GUEST_CONTENTS, tree, package, release)),
};

/// What a package holds and says of itself.
struct Contents {
    package: &'static str,
    /// The programs, each with the package of the workspace that it is of.
    programs: &'static [(&'static str, &'static str)],
    /// Lines of the control file beyond those that every package has.
    relations: &'static str,
    description: &'static str,
    /// Whether the whole of `docs/` goes with it.
    documents: bool,
    /// Files of `packaging/`, each with the place where it is installed.
    services: &'static [(&'static str, &'static str)],
    /// Folders for what the administrator writes.
    folders: &'static [&'static str],
    /// What runs after the installation and after the removal.
    scripts: &'static [(&'static str, &'static str)],
}

const VMM_CONTENTS: Contents = Contents {
    package: "kvm-exit-stats-vmm",
    programs: &[("cloud-hypervisor", "vmm"), ("ch-remote", "api-client")],
    relations: "Section: admin\n\
        Recommends: kvm-exit-stats-dkms\n\
        Suggests: kvm-exit-stats-guest, prometheus\n\
        Provides: cloud-hypervisor\n\
        Conflicts: cloud-hypervisor\n",
    description: "virtual machine monitor that accounts for every VM exit
 Command line, REST API and ch-remote are those of Cloud Hypervisor. Besides, it
 shows the VM exits that the host's KVM counts, by reason and vCPU, with the time
 they take and the devices that they went to: as tables, as a live view, as
 JSON, as OpenMetrics for Prometheus, as recordings and reports.
 .
 The counts by reason take the modules of kvm-exit-stats-dkms. With the
 distribution's own modules the machines run just the same.
",
    documents: true,
    services: &[
        (
            "cloud-hypervisor@.service",
            "usr/lib/systemd/system/cloud-hypervisor@.service",
        ),
        (
            "kvm-exit-stats-exporter.service",
            "usr/lib/systemd/system/kvm-exit-stats-exporter.service",
        ),
        (
            "sysusers.conf",
            "usr/lib/sysusers.d/kvm-exit-stats-vmm.conf",
        ),
        (
            "tmpfiles.conf",
            "usr/lib/tmpfiles.d/kvm-exit-stats-vmm.conf",
        ),
    ],
    folders: &["etc/cloud-hypervisor"],
    scripts: &[("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)],
};

/// Users and folders are made where systemd is; elsewhere nothing needs them.
const POSTINST: &str = "#!/bin/sh
set -e
if [ \"$1\" = configure ] && command -v systemd-sysusers >/dev/null; then
	systemd-sysusers kvm-exit-stats-vmm.conf
	systemd-tmpfiles --create kvm-exit-stats-vmm.conf || true
	[ ! -d /run/systemd/system ] || systemctl daemon-reload
fi
";

/// VMs are left alone on an upgrade: they run on with the program they have.
const PRERM: &str = "#!/bin/sh
set -e
if [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then
	systemctl disable --now kvm-exit-stats-exporter.service || true
	systemctl stop 'cloud-hypervisor@*.service' || true
fi
";

const POSTRM: &str = "#!/bin/sh
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
";

const GUEST_CONTENTS: Contents = Contents {
    package: "kvm-exit-stats-guest",
    programs: &[("exit-stats", "instrumentation")],
    relations: "Section: utils\nSuggests: cpuid\n",
    description: "reads a virtual machine's own VM exits
 Run in a virtual machine, exit-stats shows how often it exited to its host, for
 what reasons and how long that took, as far as the host's KVM counts exits. It
 needs no privilege and no device: the CPUID instruction is all it uses.
",
    documents: false,
    services: &[],
    folders: &[],
    scripts: &[],
};

fn make(contents: &Contents, tree: &Tree, folder: &Path) -> Result<()> {
    let bin = binaries::build(tree)?;
    let date = text(command("git", ["log", "-1", "--format=%cI"]).current_dir(tree.root()))?;
    let written = write_documents(tree, date.get(..10).unwrap_or_default())?;
    let stage = Stage::new(tree, contents.package)?;
    for (program, _) in contents.programs {
        stage.program(&bin.join(program), &format!("usr/bin/{program}"))?;
        for (from, to) in [
            (
                format!("{program}.bash"),
                format!("bash-completion/completions/{program}"),
            ),
            (
                format!("_{program}"),
                format!("zsh/vendor-completions/_{program}"),
            ),
            (
                format!("{program}.fish"),
                format!("fish/vendor_completions.d/{program}.fish"),
            ),
        ] {
            let from = written.join("completions").join(from);
            stage.file(&from, &format!("usr/share/{to}"))?;
        }
    }
    for page in files_below(&written.join("man"))? {
        let name = file_name(&page);
        // A program's own page, and those of its subcommands.
        let is_ours = contents.programs.iter().any(|(program, _)| {
            name.strip_prefix(program)
                .is_some_and(|rest| rest.starts_with(['.', '-']))
        });
        if is_ours {
            stage.compressed(&fs::read(&page)?, &format!("usr/share/man/man1/{name}.gz"))?;
        }
    }
    let doc = format!("usr/share/doc/{}", contents.package);
    stage.text(&copyright(contents, tree)?, &format!("{doc}/copyright"))?;
    stage.compressed(
        changelog(contents, tree)?.as_bytes(),
        &format!("{doc}/changelog.gz"),
    )?;
    if contents.documents {
        let docs = tree.root().join("docs");
        for from in files_below(&docs)? {
            let name = from.strip_prefix(&docs)?.to_string_lossy().into_owned();
            stage.file(&from, &format!("{doc}/{name}"))?;
        }
        stage.file(&tree.root().join("CHANGELOG.md"), &format!("{doc}/NEWS.md"))?;
    }
    for (from, to) in contents.services {
        stage.file(&tree.root().join("packaging/systemd").join(from), to)?;
    }
    for folder in contents.folders {
        stage.folder(folder)?;
    }
    for (name, script) in contents.scripts {
        stage.script(script, &format!("DEBIAN/{name}"))?;
    }
    stage.text(
        &format!(
            "# Static, so that it runs in any initramfs and on any release.\n{}",
            contents
                .programs
                .iter()
                .map(|(program, _)| format!(
                    "{}: shared-library-lacks-prerequisites [usr/bin/{program}]\n",
                    contents.package
                ))
                .collect::<String>()
        ),
        &format!("usr/share/lintian/overrides/{}", contents.package),
    )?;
    let control = format!(
        "Package: {}\nVersion: {VERSION}\nArchitecture: amd64\nPriority: optional\n\
         Maintainer: {MAINTAINER}\nInstalled-Size: {}\n{}Description: {}",
        contents.package,
        stage.kibibytes()?,
        contents.relations,
        contents.description
    );
    stage.pack(
        &control,
        &folder.join(format!("{}_{VERSION}_amd64.deb", contents.package)),
    )
}

/// As the package of the modules has it.
const MAINTAINER: &str = "Exit statistics developers <noreply@localhost>";

/// Manual pages and completions of all programs, from their definitions.
pub fn write_documents(tree: &Tree, date: &str) -> Result<PathBuf> {
    let written = tree.lab().join("documents");
    if written.exists() {
        fs::remove_dir_all(&written)
            .with_context(|| format!("Cannot empty {}", written.display()))?;
    }
    output(
        command(
            &std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()),
            [
                "run",
                "--quiet",
                "--package",
                "lab",
                "--example",
                "documents",
                "--",
            ],
        )
        .arg(&written)
        .arg(date)
        .current_dir(tree.root()),
    )?;
    Ok(written)
}

/// Everything that is linked into the programs, by licence: they are static.
fn copyright(contents: &Contents, tree: &Tree) -> Result<String> {
    let mut crates = Vec::new();
    for (program, package) in contents.programs {
        let features: &[&str] = match *program {
            "exit-stats" => &["--no-default-features"],
            _ => &[],
        };
        let listed = text(
            command(
                "cargo",
                [
                    "tree",
                    "--package",
                    package,
                    "--edges",
                    "normal,no-proc-macro",
                ],
            )
            .args(["--prefix", "none", "--format", "{p}: {l}", "--locked"])
            .args(features)
            .current_dir(tree.root()),
        )?;
        crates.extend(
            listed
                .lines()
                // Ours have a path behind their version; a repeated one a mark.
                .filter(|line| !line.contains(" (/"))
                .map(|line| format!("  {}", line.trim_end_matches(" (*)"))),
        );
    }
    crates.sort();
    crates.dedup();
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: kvm-exit-stats\n\
         Comment:\n \
         The programs are linked statically with the C library (LGPL-2.1-or-later), with Rust's\n \
         own libraries (MIT or Apache-2.0) and with these packages from crates.io, where their\n \
         sources and licence texts are:\n{}\n\n\
         Files: *\n\
         Copyright: 2026 the authors of this repository\n\
         License: Apache-2.0\n \
         On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n",
        crates.join("\n")
    ))
}

fn changelog(contents: &Contents, tree: &Tree) -> Result<String> {
    let date = text(command("git", ["log", "-1", "--format=%cD"]).current_dir(tree.root()))?;
    let news = if contents.documents {
        "NEWS.md beside this file says"
    } else {
        "its CHANGELOG.md says"
    };
    Ok(format!(
        "{} ({VERSION}) unstable; urgency=medium\n\n  \
         * Built from the repository; {news} what changed.\n\n \
         -- {MAINTAINER}  {date}\n",
        contents.package
    ))
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
