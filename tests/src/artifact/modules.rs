//! The patched kvm.ko, kvm-intel.ko and kvm-amd.ko for a kernel of the
//! distribution, built as `instrumentation/kvm/README.md` says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::kernel::Kernel;
use super::stamp::{self, Inputs};
use crate::command::{command, output, text};
use crate::progress::step;
use crate::tree::Tree;

/// The modules that make up KVM on x86.
pub const KVM_MODULES: [&str; 3] = ["kvm", "kvm-intel", "kvm-amd"];

/// Where KVM lives in the kernel's source.
pub const KVM_FOLDER: &str = "arch/x86/kvm";

/// Builds the modules unless they are current; returns their folder.
pub fn build(tree: &Tree, kernel: &Kernel) -> Result<PathBuf> {
    let out = tree.modules(&kernel.release);
    let sources = Sources::find(tree, kernel)?;
    let hash = sources
        .files
        .iter()
        .chain([&sources.patch])
        .try_fold(
            Inputs::new().value(&kernel.release).value(&kernel.version),
            |inputs, file| inputs.file(file),
        )?
        .hash();
    if !stamp::is_current(&out, &hash) {
        let work = prepared_tree(tree, kernel)?;
        step(
            &format!("Building KVM's modules for {}", kernel.release),
            || {
                stamp::unless_current(&out, &hash, || compile(&sources, kernel, &work, &out))
                    .map(drop)
            },
        )?;
    }
    Ok(out)
}

/// The kernel's source with our part in it, for whoever looks at the source.
pub fn patched_tree(tree: &Tree, kernel: &Kernel) -> Result<PathBuf> {
    let sources = Sources::find(tree, kernel)?;
    let work = prepared_tree(tree, kernel)?;
    if !sources.are_in(&work) {
        apply(&sources, &work)?;
    }
    Ok(work)
}

/// Our part of the modules.
pub struct Sources {
    /// C files and headers.
    pub files: Vec<PathBuf>,
    /// The hooks for one series.
    pub patch: PathBuf,
}

impl Sources {
    /// Where they are written.
    pub fn find(tree: &Tree, kernel: &Kernel) -> Result<Sources> {
        let ours = tree.root().join("instrumentation/kvm");
        let mut files: Vec<PathBuf> = fs::read_dir(&ours)
            .with_context(|| format!("Cannot list {}", ours.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|suffix| suffix == "c" || suffix == "h")
            })
            .collect();
        files.sort();
        let patch = ours.join(format!("patches/{}.patch", kernel.series));
        anyhow::ensure!(
            patch.is_file(),
            "There is no patch for Linux {}: {} is missing",
            kernel.series,
            patch.display()
        );
        Ok(Sources { files, patch })
    }

    /// Whether a tree has exactly these: they are not put there again, because
    /// make would compile everything anew.
    fn are_in(&self, work: &Path) -> bool {
        let folder = work.join(KVM_FOLDER);
        same(&self.patch, &applied_patch(work))
            && self.files.iter().all(|file| {
                file.file_name()
                    .is_some_and(|name| same(file, &folder.join(name)))
            })
    }
}

fn same(a: &Path, b: &Path) -> bool {
    match (fs::read(a), fs::read(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// The distribution's source, configured as the running kernel is. Made once.
pub fn prepared_tree(tree: &Tree, kernel: &Kernel) -> Result<PathBuf> {
    prepared(tree, kernel, &format!("linux-{}", kernel.release))
}

/// The same in a folder of this name, for patches that are not ours.
pub(super) fn prepared(tree: &Tree, kernel: &Kernel, name: &str) -> Result<PathBuf> {
    let work = tree.cache().join(name);
    let hash = Inputs::new()
        .value(&kernel.release)
        .value(&kernel.version)
        .hash();
    if stamp::is_current(&work, &hash) {
        return Ok(work);
    }
    let archive = kernel.source_archive()?;
    let headers = kernel.headers()?;
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    stamp::unless_current(&work, &hash, || {
        step("Unpacking the kernel's source", || unpack(&archive, &work))?;
        step("Preparing the kernel's source", || {
            for name in [".config", "Module.symvers"] {
                let from = headers.join(name);
                fs::copy(&from, work.join(name))
                    .with_context(|| format!("Cannot copy {}", from.display()))?;
            }
            output(make(kernel, &work).args(["olddefconfig", "modules_prepare"])).map(drop)
        })
    })?;
    Ok(work)
}

fn unpack(archive: &Path, work: &Path) -> Result<()> {
    let parent = work.parent().context("No place for the source")?;
    let partial = parent.join("linux.partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    // A seventh of the source is register lists of one graphics driver.
    output(
        command("tar", ["--strip-components=1"])
            .arg("--exclude=*/drivers/gpu/drm/amd/include")
            .arg("-C")
            .arg(&partial)
            .arg("-xf")
            .arg(archive),
    )?;
    fs::rename(&partial, work).with_context(|| format!("Cannot make {}", work.display()))
}

fn apply(sources: &Sources, work: &Path) -> Result<()> {
    // What stays as it is keeps its time, and make compiles only what changed.
    let patched = same(&sources.patch, &applied_patch(work));
    if !patched {
        restore(work)?;
    }
    for file in &sources.files {
        let name = file.file_name().context("A source file has no name")?;
        let to = work.join(KVM_FOLDER).join(name);
        if !same(file, &to) {
            fs::copy(file, &to).with_context(|| format!("Cannot copy {}", file.display()))?;
        }
    }
    if patched {
        return Ok(());
    }
    // The patch is kept beside the tree: that copy is what restore() reverts.
    fs::copy(&sources.patch, applied_patch(work))?;
    output(
        command(
            "patch",
            ["-p1", "--no-backup-if-mismatch", "--forward", "-i"],
        )
        .arg(&sources.patch)
        .current_dir(work),
    )
    .context("The patch does not apply")
    .map(drop)
}

fn compile(sources: &Sources, kernel: &Kernel, work: &Path, out: &Path) -> Result<()> {
    apply(sources, work)?;
    // A build that was killed leaves half a file, which make takes for a whole one.
    let unfinished = work.join(".unfinished");
    let modules = format!("M={KVM_FOLDER}");
    if unfinished.exists() {
        output(make(kernel, work).args([&modules, "clean"]))?;
    }
    fs::write(&unfinished, "")?;
    output(make(kernel, work).args([&modules, "modules"]))?;
    fs::remove_file(&unfinished)?;
    fs::create_dir_all(out)?;
    for module in KVM_MODULES {
        let built = work.join(KVM_FOLDER).join(format!("{module}.ko"));
        let vermagic = text(command("modinfo", ["-F", "vermagic"]).arg(&built))?;
        anyhow::ensure!(
            vermagic.split(' ').next() == Some(&kernel.release),
            "{module}.ko is for {vermagic}, not for {}",
            kernel.release
        );
        output(
            command("strip", ["--strip-debug", "-o"])
                .arg(out.join(format!("{module}.ko")))
                .arg(&built),
        )?;
    }
    Ok(())
}

/// Takes an earlier patch out, so that the next build compiles only what changed.
fn restore(work: &Path) -> Result<()> {
    let applied = applied_patch(work);
    if applied.exists() {
        output(
            command(
                "patch",
                [
                    "-p1",
                    "--no-backup-if-mismatch",
                    "--reverse",
                    "--force",
                    "-i",
                ],
            )
            .arg(&applied)
            .current_dir(work),
        )
        .with_context(|| {
            format!(
                "{} is in a strange state; remove it and try again",
                work.display()
            )
        })?;
        fs::remove_file(&applied)?;
    }
    Ok(())
}

fn applied_patch(work: &Path) -> PathBuf {
    work.join(".applied.patch")
}

/// `make` in a prepared tree.
pub fn make(kernel: &Kernel, work: &Path) -> Command {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut make = command("make", [format!("-j{jobs}")]);
    // Debian's release string is not the one that the version makes by itself.
    make.arg(format!("KERNELRELEASE={}", kernel.release))
        .current_dir(work);
    make
}
