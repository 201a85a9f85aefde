//! Our own programs, statically linked so that they run in any initramfs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::command::{command, text, visible};
use crate::progress::step;
use crate::tree::Tree;

/// The programs by package.
const PROGRAMS: [(&str, &str); 4] = [
    ("vmm", "cloud-hypervisor"),
    ("api-client", "ch-remote"),
    ("instrumentation", "exit-stats"),
    ("lab", "lab-suites"),
];

/// glibc links statically; a musl target would have to be installed first.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the programs and puts them in `target/lab/bin`.
pub fn build(tree: &Tree) -> Result<PathBuf> {
    let mut build = command(
        &std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()),
        ["build", "--quiet", "--release", "--target", TARGET],
    );
    build
        .current_dir(tree.root())
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    for (package, program) in PROGRAMS {
        build.args(["--package", package, "--bin", program]);
    }
    step("Building the static programs", || visible(&mut build))?;
    let built = target_dir(tree)?.join(TARGET).join("release");
    let bin = tree.bin();
    fs::create_dir_all(&bin).with_context(|| format!("Cannot make {}", bin.display()))?;
    for (_, program) in PROGRAMS {
        let from = built.join(program);
        let to = bin.join(program);
        // Writing over a program that runs would fail; a new file does not.
        let partial = bin.join(format!(".{program}"));
        fs::copy(&from, &partial).with_context(|| format!("Cannot copy {}", from.display()))?;
        fs::rename(&partial, &to).with_context(|| format!("Cannot make {}", to.display()))?;
    }
    Ok(bin)
}

/// Where cargo builds: `target`, unless the environment says otherwise.
fn target_dir(tree: &Tree) -> Result<PathBuf> {
    let metadata = text(
        command("cargo", ["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(tree.root()),
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let dir = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target directory")?;
    Ok(PathBuf::from(dir))
}
