//! Our own programs, statically linked so that they run in any initramfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{command, text, visible};
use crate::progress::step;
use crate::tree::Tree;

/// The programs by package.
const PROGRAMS: [(&str, &str); 4] = [
    ("vmm", "cloud-hypervisor"),
    ("api-client", "ch-remote"),
    ("lab", "lab-suites"),
    ("unmodified-client", "unmodified-client"),
];

/// Tests that need a KVM host, by package and name of the test: programs of
/// their own that the suites run there.
const KVM_TESTS: [(&str, &str); 1] = [("hypervisor", "tiny_guests")];

/// The program that goes into guests, by package. Built without Rust's runtime.
const GUEST_PROGRAM: (&str, &str) = ("instrumentation", "exit-stats");

/// What it may take in a guest's memory, in bytes. The C library is most of it.
const GUEST_PROGRAM_LIMIT: u64 = 1_000_000;

/// glibc links statically; a musl target would have to be installed first.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the programs and puts them in `target/lab/bin`.
pub fn build(tree: &Tree) -> Result<PathBuf> {
    step("Building the static programs", || {
        let mut build = cargo(tree, "build");
        build.arg("--release");
        for (package, program) in PROGRAMS {
            build.args(["--package", package, "--bin", program]);
        }
        visible(&mut build)?;
        let (package, program) = GUEST_PROGRAM;
        visible(cargo(tree, "build").args([
            "--profile=guest",
            "--no-default-features",
            "--package",
            package,
            "--bin",
            program,
        ]))
    })?;
    let tests = step("Building the tests that need a KVM host", || {
        KVM_TESTS
            .iter()
            .map(|&(package, test)| build_test(tree, package, test))
            .collect::<Result<Vec<PathBuf>>>()
    })?;
    let built = target_dir(tree)?.join(TARGET);
    let bin = tree.bin();
    fs::create_dir_all(&bin).with_context(|| format!("Cannot make {}", bin.display()))?;
    for (_, program) in PROGRAMS {
        install(&built.join("release").join(program), &bin.join(program))?;
    }
    for ((_, test), program) in KVM_TESTS.iter().zip(&tests) {
        install(program, &bin.join(test))?;
    }
    let (_, program) = GUEST_PROGRAM;
    let guest_program = built.join("guest").join(program);
    let size = fs::metadata(&guest_program)?.len();
    ensure!(
        size < GUEST_PROGRAM_LIMIT,
        "{program} takes {size} bytes, guests give it {GUEST_PROGRAM_LIMIT}: see what pulls in Rust's runtime"
    );
    install(&guest_program, &bin.join(program))?;
    Ok(bin)
}

/// Builds one test of a package; returns the program, whose name has a hash.
fn build_test(tree: &Tree, package: &str, test: &str) -> Result<PathBuf> {
    let mut build = cargo(tree, "test");
    build.args(["--release", "--no-run", "--message-format=json"]);
    build.args(["--package", package, "--test", test]);
    text(&mut build)?
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == test)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo names no program of the test {test}"))
}

fn cargo(tree: &Tree, command_name: &str) -> Command {
    let mut build = command(
        &std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()),
        [command_name, "--quiet", "--target", TARGET],
    );
    build
        .current_dir(tree.root())
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    build
}

fn install(from: &Path, to: &Path) -> Result<()> {
    // Writing over a program that runs would fail; a new file does not.
    let partial = to.with_extension("partial");
    fs::copy(from, &partial).with_context(|| format!("Cannot copy {}", from.display()))?;
    fs::rename(&partial, to).with_context(|| format!("Cannot make {}", to.display()))
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
