//! Where things are: the repository and the lab's own folder under `target`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The work tree and the places that the lab writes to.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The work tree that this program was built from.
    pub fn discover() -> Result<Tree> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("The package has no parent folder")?;
        anyhow::ensure!(
            root.join("Cargo.toml").is_file(),
            "{} is gone: run `cargo lab` in a work tree",
            root.display()
        );
        Ok(Tree {
            root: root.to_owned(),
        })
    }

    /// The repository's root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Everything that the lab makes: `target/lab`.
    pub fn lab(&self) -> PathBuf {
        self.root.join("target/lab")
    }

    /// Downloads, kernel trees and images, kept between runs.
    pub fn cache(&self) -> PathBuf {
        self.lab().join("cache")
    }

    /// The static binaries.
    pub fn bin(&self) -> PathBuf {
        self.lab().join("bin")
    }

    /// The modules of one kernel release.
    pub fn modules(&self, release: &str) -> PathBuf {
        self.lab().join(release)
    }

    /// Debian packages of what this repository makes.
    pub fn packages(&self) -> PathBuf {
        self.lab().join("packages")
    }

    /// Logs of one kind of run, emptied when it starts.
    pub fn fresh_log_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.lab().join("log").join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)
                .with_context(|| format!("Cannot empty {}", dir.display()))?;
        }
        std::fs::create_dir_all(&dir).with_context(|| format!("Cannot make {}", dir.display()))?;
        Ok(dir)
    }
}
