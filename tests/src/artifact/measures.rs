//! The distribution's programs that measure disks and networks, for a host and
//! its guests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::guest_image::libraries;
use super::kernel::Kernel;
use super::packages;
use super::peer;
use super::stamp::{self, Inputs};
use crate::bench::io::{DRIVERS, PROGRAMS};
use crate::command::{command, output};
use crate::tree::Tree;

const FIO: &str = "/usr/bin/fio";
const IPERF: &str = "/usr/bin/iperf3";

/// Size of their file system, most of it theirs.
const SIZE: &str = "112M";

/// The host's own driver of a disk in its memory, loaded when it is needed.
const DRIVER: &str = "drivers/block/brd";

/// What a host needs to measure our VMM and QEMU at the same work, by path in
/// the host.
pub fn files(tree: &Tree, kernel: &Kernel) -> Result<Vec<(String, PathBuf)>> {
    packages::ensure_installed_with(packages::MEASURES)?;
    let mut files = peer::whole_files()?;
    files.push((PROGRAMS.to_owned(), image(tree)?));
    files.push((format!("{DRIVERS}/brd.ko"), kernel.stock_module(DRIVER)?));
    for path in with_libraries(IPERF)? {
        files.push((path.to_string_lossy().into_owned(), path));
    }
    // QEMU and iperf3 have libraries in common.
    files.sort();
    files.dedup();
    Ok(files)
}

fn with_libraries(program: &str) -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from(program)];
    files.extend(libraries(Path::new(program))?);
    Ok(files)
}

/// A file system with the programs, for a guest's disk.
fn image(tree: &Tree) -> Result<PathBuf> {
    let image = tree.cache().join("measures.img");
    let hash = Inputs::new()
        .value(SIZE)
        .file(Path::new(FIO))?
        .file(Path::new(IPERF))?
        .hash();
    stamp::unless_current(&image, &hash, || {
        let root = tree.cache().join("measures");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        for folder in ["dev", "proc", "sys", "tmp", "usr/bin"] {
            fs::create_dir_all(root.join(folder))?;
        }
        symlink("usr/bin", root.join("bin"))?;
        for program in [FIO, IPERF] {
            for path in with_libraries(program)? {
                let to = root.join(path.strip_prefix("/").unwrap_or(&path));
                fs::create_dir_all(to.parent().unwrap_or(&root))?;
                fs::copy(&path, &to).with_context(|| format!("Cannot copy {}", path.display()))?;
            }
        }
        let mut make = command(
            "mke2fs",
            ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"],
        );
        output(make.args([&root, &image]).arg(SIZE))?;
        fs::remove_dir_all(&root).context("Cannot remove the programs' folder")
    })?;
    Ok(image)
}
