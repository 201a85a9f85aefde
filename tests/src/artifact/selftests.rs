//! The kernel's own tests of KVM, built from the distribution's source.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use super::modules::{make, prepared_tree};
use super::stamp::{self, Inputs, files_below};
use crate::command::{command, output};
use crate::progress::step;
use crate::tree::Tree;

/// Where they are in the kernel's source.
pub(super) const FOLDER: &str = "tools/testing/selftests/kvm";

/// Fewer than this came out of no source that we know.
const EXPECTED: usize = 60;

/// A program and its name, which is its path below the folder of all.
#[derive(Clone, Debug)]
pub struct Selftest {
    /// Such as `x86_64/cpuid_test`.
    pub name: String,
    /// The program, static and stripped.
    pub path: PathBuf,
}

/// Builds them unless they are current; in the order of their names.
pub fn build(tree: &Tree, kernel: &Kernel) -> Result<Vec<Selftest>> {
    let out = tree.cache().join(format!("selftests-{}", kernel.release));
    let hash = Inputs::new()
        .value(&kernel.release)
        .value(&kernel.version)
        .hash();
    stamp::unless_current(&out, &hash, || {
        let work = prepared_tree(tree, kernel)?;
        step(
            &format!("Building the selftests of Linux {}", kernel.series),
            || compile(kernel, &work, &build_folder(tree, kernel), &out),
        )
    })?;
    let mut found = Vec::new();
    for path in files_below(&out)? {
        let name = path.strip_prefix(&out).unwrap_or(&path);
        found.push(Selftest {
            name: name.to_string_lossy().into_owned(),
            path,
        });
    }
    Ok(found)
}

fn build_folder(tree: &Tree, kernel: &Kernel) -> PathBuf {
    tree.cache()
        .join(format!("selftests-{}-build", kernel.release))
}

fn compile(kernel: &Kernel, work: &Path, build: &Path, out: &Path) -> Result<()> {
    for folder in [out, build] {
        if folder.exists() {
            fs::remove_dir_all(folder)
                .with_context(|| format!("Cannot empty {}", folder.display()))?;
        }
    }
    fs::create_dir_all(build).with_context(|| format!("Cannot make {}", build.display()))?;
    output(make(kernel, work).arg("headers_install"))?;
    // 6.1's tree holds two tests that were taken from later kernels without a
    // macro and a header that they use there.
    let headers = work.join("usr/include");
    let flags = format!(
        "-DTEST_ASSERT_EQ=ASSERT_EQ -idirafter {0} -include {0}/linux/stddef.h",
        headers.display()
    );
    let mut tests = make(kernel, work);
    tests
        .args(["--keep-going", "-C", FOLDER, "LDFLAGS=-static"])
        .arg(format!("OUTPUT={}", build.display()));
    if kernel.series == "6.1" {
        tests.env("CFLAGS", flags);
    }
    // One that does not build does not keep the others from running.
    let outcome = output(&mut tests);
    let mut built = 0;
    for path in files_below(build)? {
        let program = fs::metadata(&path)?.permissions().mode() & 0o111 != 0;
        if !program || path.extension().is_some() {
            continue;
        }
        let to = out.join(path.strip_prefix(build)?);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        output(command("strip", ["-o"]).arg(&to).arg(&path))?;
        built += 1;
    }
    fs::remove_dir_all(build)?;
    ensure!(
        built >= EXPECTED,
        "Only {built} selftests came out; {}",
        outcome.err().map_or_else(
            || "make has no complaint".to_owned(),
            |error| format!("{error:#}")
        )
    );
    Ok(())
}
