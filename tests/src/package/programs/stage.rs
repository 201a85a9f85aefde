//! The folder that a package is packed from.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::artifact::stamp::files_below;
use crate::command::{command, output, text};
use crate::tree::Tree;

/// A tree of files as they will be installed; gone when dropped.
pub struct Stage {
    root: PathBuf,
    /// The last commit's time: the same commit makes the same package.
    epoch: String,
}

impl Stage {
    /// An empty one.
    pub fn new(tree: &Tree, name: &str) -> Result<Stage> {
        let root = tree.lab().join("stage").join(name);
        if root.exists() {
            fs::remove_dir_all(&root)
                .with_context(|| format!("Cannot empty {}", root.display()))?;
        }
        let epoch = text(command("git", ["log", "-1", "--format=%ct"]).current_dir(tree.root()))?;
        Ok(Stage { root, epoch })
    }

    /// A program from a file.
    pub fn program(&self, from: &Path, to: &str) -> Result<()> {
        self.write(&read(from)?, to, 0o755)
    }

    /// A copy of a file.
    pub fn file(&self, from: &Path, to: &str) -> Result<()> {
        self.write(&read(from)?, to, 0o644)
    }

    /// A text.
    pub fn text(&self, content: &str, to: &str) -> Result<()> {
        self.write(content.as_bytes(), to, 0o644)
    }

    /// A script of the package's own.
    pub fn script(&self, content: &str, to: &str) -> Result<()> {
        self.write(content.as_bytes(), to, 0o755)
    }

    /// An empty folder.
    pub fn folder(&self, to: &str) -> Result<()> {
        self.make_folder(Path::new(to)).map(drop)
    }

    /// Something that policy wants compressed; `to` ends in `.gz`.
    pub fn compressed(&self, content: &[u8], to: &str) -> Result<()> {
        let plain = to.trim_end_matches(".gz");
        self.write(content, plain, 0o644)?;
        output(command("gzip", ["-9n"]).arg(self.root.join(plain))).map(drop)
    }

    /// What it will take on a disk, roughly.
    pub fn kibibytes(&self) -> Result<u64> {
        let mut sum = 0;
        for file in files_below(&self.root)? {
            sum += fs::metadata(&file)?.len().div_ceil(1024);
        }
        Ok(sum)
    }

    /// Packs it all.
    pub fn pack(self, control: &str, package: &Path) -> Result<()> {
        let sums = text(
            command(
                "sh",
                [
                    "-ec",
                    "find usr -type f -print0 | sort -z | xargs -0 md5sum",
                ],
            )
            .current_dir(&self.root),
        )?;
        self.text(&(sums + "\n"), "DEBIAN/md5sums")?;
        self.text(control, "DEBIAN/control")?;
        output(
            command("dpkg-deb", ["--root-owner-group", "-Zxz", "--build"])
                .arg(&self.root)
                .arg(package)
                .env("SOURCE_DATE_EPOCH", &self.epoch),
        )
        .map(drop)
    }

    fn write(&self, content: &[u8], to: &str, mode: u32) -> Result<()> {
        let to = Path::new(to);
        let name = to.file_name().unwrap_or_default();
        let path = self
            .make_folder(to.parent().unwrap_or(Path::new("")))?
            .join(name);
        fs::write(&path, content).with_context(|| format!("Cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(())
    }
}

impl Stage {
    /// Makes a folder; whatever the umask says, others can read it.
    fn make_folder(&self, inside: &Path) -> Result<PathBuf> {
        let mut folder = self.root.clone();
        fs::create_dir_all(folder.join(inside))?;
        for part in inside {
            folder.push(part);
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        }
        Ok(folder)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Cannot read {}", path.display()))
}
