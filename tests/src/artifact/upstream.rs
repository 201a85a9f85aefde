//! The patch series for mainline: applied, checked and built a patch at a time, in a
//! tree of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::kernel::Kernel;
use super::modules::{KVM_FOLDER, KVM_MODULES, make, prepared};
use super::selftests::FOLDER as SELFTESTS;
use super::stamp::{self, Inputs};
use crate::command::{command, output, text};
use crate::progress::step;
use crate::tree::Tree;

/// What the series adds to the kernel's configuration.
const OPTION: &str = "KVM_EXIT_CYCLES";

/// Its own test, and the one of the interface that it extends.
pub const TESTS: [&str; 2] = ["x86/exit_reason_stats_test", "kvm_binary_stats_test"];

/// Folders of the modules: before the series, with it, and with its option. The first are
/// what the others are measured against, because another compiler than the distribution's
/// makes a difference that is larger than theirs.
pub const VARIANTS: [&str; 3] = ["before", "counts", "cycles"];

/// The patches in their order, without the cover letter.
pub fn patches(tree: &Tree) -> Result<Vec<PathBuf>> {
    let folder = tree.root().join("instrumentation/kvm/upstream");
    let mut patches: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("Cannot list {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".patch") && !name.starts_with("0000-")
        })
        .collect();
    patches.sort();
    ensure!(
        !patches.is_empty(),
        "There is no patch in {}",
        folder.display()
    );
    Ok(patches)
}

/// Applies the patches one by one; each has to satisfy checkpatch and to build. Returns
/// the folder with the modules of each variant and the tests.
pub fn build(tree: &Tree, kernel: &Kernel) -> Result<PathBuf> {
    let patches = patches(tree)?;
    let out = tree.lab().join(format!("upstream-{}", kernel.release));
    let hash = patches
        .iter()
        .try_fold(
            Inputs::new().value(&kernel.release).value(&kernel.version),
            |inputs, patch| inputs.file(patch),
        )?
        .hash();
    stamp::unless_current(&out, &hash, || {
        let work = prepared(tree, kernel, &format!("linux-upstream-{}", kernel.release))?;
        let place = Place {
            kernel,
            work: &work,
        };
        place.restore()?;
        place.configure("--disable")?;
        let [before, counts, cycles] = VARIANTS.map(|variant| out.join(variant));
        step("Building KVM as it was", || place.keep_modules(&before))?;
        for patch in &patches {
            let name = name_of(patch);
            step(&format!("Building {name}"), || {
                place.checkpatch(patch)?;
                place.apply(patch)?;
                place.modules()
            })
            .with_context(|| name)?;
        }
        place.keep_modules(&counts)?;
        step(&format!("Building the series with {OPTION}"), || {
            place.configure("--enable")?;
            place.keep_modules(&cycles)
        })?;
        step("Building the series' selftests", || place.tests(&out))
    })?;
    Ok(out)
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

struct Place<'a> {
    kernel: &'a Kernel,
    work: &'a Path,
}

impl Place<'_> {
    /// Copies of the patches that are in the tree.
    fn applied(&self) -> PathBuf {
        self.work.join(".applied")
    }

    /// Takes out what an earlier series put in.
    fn restore(&self) -> Result<()> {
        let applied = self.applied();
        if !applied.is_dir() {
            return fs::create_dir_all(&applied).context("Cannot note the patches");
        }
        let mut patches = stamp::files_below(&applied)?;
        while let Some(patch) = patches.pop() {
            self.patch(&patch, "--reverse").with_context(|| {
                format!(
                    "{} is in a strange state; remove it and try again",
                    self.work.display()
                )
            })?;
            fs::remove_file(&patch)?;
        }
        Ok(())
    }

    /// Without fuzz, as `git am` does it.
    fn apply(&self, patch: &Path) -> Result<()> {
        self.patch(patch, "--forward")
            .context("It does not apply")?;
        fs::copy(patch, self.applied().join(name_of(patch)))?;
        Ok(())
    }

    fn patch(&self, patch: &Path, direction: &str) -> Result<()> {
        let options = ["-p1", "--fuzz=0", "--no-backup-if-mismatch", "--force"];
        output(
            command("patch", options)
                .args([direction, "-i"])
                .arg(patch)
                .current_dir(self.work),
        )
        .map(drop)
    }

    fn checkpatch(&self, patch: &Path) -> Result<()> {
        // New files are where MAINTAINERS expects KVM's already.
        let said = text(
            command("perl", ["scripts/checkpatch.pl", "--strict"])
                .args(["--no-tree", "--ignore", "FILE_PATH_CHANGES"])
                .arg(patch)
                .current_dir(self.work),
        )?;
        if !said.contains("has no obvious style problems") {
            bail!("checkpatch says\n{said}");
        }
        Ok(())
    }

    /// Configures, and takes all objects away: what is built outside the whole kernel's build
    /// does not notice a changed option, and `clean` there leaves what is in other folders.
    fn configure(&self, switch: &str) -> Result<()> {
        output(command("scripts/config", [switch, OPTION]).current_dir(self.work))?;
        output(make(self.kernel, self.work).args(["olddefconfig", "modules_prepare"]))?;
        output(make(self.kernel, self.work).args([&format!("M={KVM_FOLDER}"), "clean"]))?;
        for file in stamp::files_below(&self.work.join("virt/kvm"))? {
            if file.extension().is_some_and(|suffix| suffix == "o") {
                fs::remove_file(&file)
                    .with_context(|| format!("Cannot remove {}", file.display()))?;
            }
        }
        Ok(())
    }

    /// All of KVM, warnings being errors; without what only debuggers read.
    fn modules(&self) -> Result<()> {
        output(make(self.kernel, self.work).args([
            &format!("M={KVM_FOLDER}"),
            "KCFLAGS=-g0 -Werror",
            "modules",
        ]))
        .map(drop)
    }

    fn keep_modules(&self, folder: &Path) -> Result<()> {
        self.modules()?;
        fs::create_dir_all(folder)?;
        for module in KVM_MODULES {
            let module = format!("{module}.ko");
            output(
                command("strip", ["--strip-debug", "-o"])
                    .arg(folder.join(&module))
                    .arg(self.work.join(KVM_FOLDER).join(&module)),
            )?;
        }
        Ok(())
    }

    fn tests(&self, out: &Path) -> Result<()> {
        let build = self.work.join(".selftests");
        output(make(self.kernel, self.work).arg("headers_install"))?;
        output(
            make(self.kernel, self.work)
                .args(["-C", SELFTESTS, "LDFLAGS=-static"])
                .arg(format!("OUTPUT={}", build.display()))
                .args(TESTS.map(|test| build.join(test))),
        )?;
        for test in TESTS {
            let name = test.rsplit('/').next().unwrap_or(test);
            output(
                command("strip", ["-o"])
                    .arg(out.join(name))
                    .arg(build.join(test)),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_is_what_git_would_send() {
        let tree = Tree::discover().unwrap();
        let patches = patches(&tree).unwrap();
        for (index, patch) in patches.iter().enumerate() {
            let name = name_of(patch);
            assert!(name.starts_with(&format!("{:04}-", index + 1)), "{name}");
            let text = fs::read_to_string(patch).unwrap();
            // A long line of the header is folded.
            let message = text.split("\n---\n").next().unwrap().replace("\n ", " ");
            let number = format!("\nSubject: [PATCH {}/{}] KVM: ", index + 1, patches.len());
            assert!(message.contains(&number), "{name} is not{number}");
            let author = message
                .lines()
                .find_map(|line| line.strip_prefix("From: "))
                .unwrap();
            assert!(
                message.ends_with(&format!("\nSigned-off-by: {author}")),
                "{name}"
            );
        }
    }
}
