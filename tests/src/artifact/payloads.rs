//! What guests boot beside the host's own kernel: memory tests, firmware, and
//! each kernel flavour that Debian ships.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::debian;
use super::packages::{self, Apt};
use super::stamp::files_below;
use crate::command::{command, output};
use crate::progress::step;
use crate::tree::Tree;

/// Where the host has them.
pub const IN_HOST: &str = "/lab/guest/payloads";

/// Debian's release after this one.
const TESTING: &str = "testing";

/// memtest86+ as this release and the next one have it: the file in the package.
const MEMTEST: [(&str, Option<&str>, &str); 2] = [
    ("memtest86-6", None, "boot/memtest86+x64.bin"),
    ("memtest86-8", Some(TESTING), "boot/mt86+x64"),
];

/// Kernels by the metapackages that name the newest of each flavour.
const KERNELS: [(&str, Option<&str>); 9] = [
    ("linux-image-cloud-amd64", None),
    ("linux-image-amd64", None),
    ("linux-image-rt-amd64", None),
    ("linux-image-6.12-cloud-amd64", None),
    ("linux-image-6.12-amd64", None),
    ("linux-image-6.12-rt-amd64", None),
    ("linux-image-cloud-amd64", Some(TESTING)),
    ("linux-image-amd64", Some(TESTING)),
    ("linux-image-rt-amd64", Some(TESTING)),
];
/// The one of them that a short run takes.
const SHORT: (&str, Option<&str>) = ("linux-image-cloud-amd64", Some(TESTING));

/// All payloads as files of a host's image, downloaded if they are not here
/// yet; in a short run one kernel of them.
pub fn fetch(tree: &Tree, long: bool) -> Result<Vec<(String, PathBuf)>> {
    let mut files = vec![("firmware".to_owned(), debian::firmware(tree)?)];
    for (name, release, file) in MEMTEST {
        let package = match release {
            None => packages::unpacked(tree, "memtest86+")?,
            Some(release) => packages::unpacked_from(tree, release, "memtest86+")?,
        };
        files.push((name.to_owned(), package.join(file)));
    }
    for kernel in KERNELS {
        if long || kernel == SHORT {
            let image = kernel_image(tree, kernel.0, kernel.1)?;
            let name = image.file_name().unwrap_or_default().to_string_lossy();
            files.push((format!("kernel-{name}"), image.clone()));
        }
    }
    Ok(files
        .into_iter()
        .map(|(name, path)| (format!("{IN_HOST}/{name}"), path))
        .collect())
}

/// The image of the kernel that a metapackage depends on. Its modules, half a
/// gigabyte, stay packed.
fn kernel_image(tree: &Tree, metapackage: &str, release: Option<&str>) -> Result<PathBuf> {
    let place = format!("{metapackage}-{}", release.unwrap_or("stable"));
    let dir = tree.cache().join("payloads").join(&place);
    if !dir.exists() {
        step(&format!("Downloading {place}"), || {
            let apt = Apt::of(tree, release)?;
            let image = depends_on(&apt, metapackage, "linux-image-")?
                .with_context(|| format!("{metapackage} names no kernel"))?;
            // Newer packages leave the kernel itself to another one.
            let package = depends_on(&apt, &image, "linux-binary-")?;
            let version = image.trim_start_matches("linux-image-");
            unpack_kernel(&apt, package.as_deref().unwrap_or(&image), version, &dir)
        })?;
    }
    fs::read_dir(&dir)
        .with_context(|| format!("Cannot list {}", dir.display()))?
        .find_map(|entry| Some(entry.ok()?.path()))
        .with_context(|| format!("{place} has no kernel"))
}

/// The first dependency of a package whose name begins so.
fn depends_on(apt: &Apt, package: &str, prefix: &str) -> Result<Option<String>> {
    let mut dependencies = apt.dependencies(package)?.into_iter();
    Ok(dependencies.find(|name| name.starts_with(prefix)))
}

/// Downloads a package and puts the kernel in it to `dir`, which appears only
/// when whole and has nothing else.
fn unpack_kernel(apt: &Apt, package: &str, version: &str, dir: &Path) -> Result<()> {
    let partial = dir.with_extension("partial");
    let unpacked = dir.with_extension("unpacked");
    for folder in [&partial, &unpacked] {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
    }
    let archive = apt.download(package, &unpacked)?;
    let tar = unpacked.join("content");
    output(
        command("dpkg-deb", ["--fsys-tarfile"])
            .arg(&archive)
            .stdout(fs::File::create(&tar)?),
    )?;
    output(
        command("tar", ["-x", "--wildcards", "--no-anchored", "-f"])
            .arg(&tar)
            .arg("-C")
            .arg(&unpacked)
            .arg("vmlinuz*"),
    )?;
    let kernel = files_below(&unpacked)?
        .into_iter()
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("vmlinuz")
        })
        .with_context(|| format!("{package} has no kernel"))?;
    fs::rename(kernel, partial.join(format!("vmlinuz-{version}")))?;
    fs::remove_dir_all(&unpacked)?;
    fs::rename(&partial, dir).with_context(|| format!("Cannot make {}", dir.display()))
}
