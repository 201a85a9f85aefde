//! The guest's initramfs: busybox, our reader and Debian's `cpuid`.
//!
//! A test appends a small archive with `/t/run.sh`, which is all that the
//! guest does before it powers off.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Cpio;
use super::stamp::{self, Inputs};
use crate::command::{command, output, text};
use crate::tree::Tree;

const INIT: &str = include_str!("guest-init.sh");

/// Makes the image unless it is current; returns its path.
pub fn build(tree: &Tree) -> Result<PathBuf> {
    let image = tree.cache().join("guest.cpio");
    let reader = tree.bin().join("exit-stats");
    let cpuid = debian_cpuid(tree)?;
    let busybox = Path::new("/bin/busybox");
    let hash = Inputs::new()
        .value(INIT)
        .file(&reader)?
        .file(&cpuid)?
        .file(busybox)?
        .hash();
    stamp::unless_current(&image, &hash, || {
        let mut archive = Cpio::new()
            .device("/dev/console", 5, 1)
            .file("/init", 0o755, INIT.as_bytes())
            .folder("/proc")
            .folder("/sys")
            .folder("/tmp")
            .folder("/t")
            .copy("/bin/busybox", 0o755, busybox)?
            .copy("/bin/exit-stats", 0o755, &reader)?
            .copy("/bin/cpuid", 0o755, &cpuid)?;
        for library in libraries(&cpuid)? {
            archive = archive.copy(&library.to_string_lossy(), 0o755, &library)?;
        }
        fs::write(&image, archive.finish())
            .with_context(|| format!("Cannot write {}", image.display()))
    })?;
    Ok(image)
}

/// The distribution's `cpuid`, the reader that people already have.
fn debian_cpuid(tree: &Tree) -> Result<PathBuf> {
    let dir = tree.cache().join("deb/cpuid");
    let program = dir.join("usr/bin/cpuid");
    if !program.exists() {
        fs::create_dir_all(&dir)?;
        output(command("apt-get", ["download", "-q", "cpuid"]).current_dir(&dir))?;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|suffix| suffix == "deb") {
                output(command("dpkg", ["-x"]).arg(&path).arg(&dir))?;
            }
        }
    }
    Ok(program)
}

/// The shared libraries of a program, with the loader, by their usual paths.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let shown = text(&mut command("ldd", [program]))?;
    Ok(shown
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}
