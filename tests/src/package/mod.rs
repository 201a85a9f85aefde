//! Debian packages of what this repository makes, one module a package.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::tree::Tree;

mod dkms;
mod life;
mod programs;
mod root;

pub use programs::write_documents;

/// The version of every package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Lives through a package's life, on one release of Debian or on all that matter.
pub type Life = fn(&Tree, &Path, Option<Release>) -> Result<()>;

/// A kind of package.
pub struct Recipe {
    /// The package's name.
    pub name: &'static str,
    /// Writes `NAME_*.deb` to a folder.
    make: fn(&Tree, &Path) -> Result<()>,
    /// Tests the package from installation to removal.
    pub life: Option<Life>,
}

/// A release of Debian that packages are tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Release {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Release {
    const ALL: [Release; 2] = [Release::Bookworm, Release::Trixie];

    fn as_str(self) -> &'static str {
        match self {
            Release::Bookworm => "bookworm",
            Release::Trixie => "trixie",
        }
    }
}

/// All that are made.
pub const RECIPES: [Recipe; 3] = [dkms::RECIPE, programs::VMM, programs::GUEST];

impl Recipe {
    /// Makes the package in place of an older one; returns its file.
    pub fn build(&self, tree: &Tree) -> Result<PathBuf> {
        let folder = tree.packages();
        fs::create_dir_all(&folder).with_context(|| format!("Cannot make {}", folder.display()))?;
        for older in self.files(&folder)? {
            fs::remove_file(&older)
                .with_context(|| format!("Cannot remove {}", older.display()))?;
        }
        (self.make)(tree, &folder)?;
        self.files(&folder)?
            .pop()
            .with_context(|| format!("No package {} came out", self.name))
    }

    fn files(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let start = format!("{}_", self.name);
        let entries =
            fs::read_dir(folder).with_context(|| format!("Cannot list {}", folder.display()))?;
        Ok(entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&start) && name.ends_with(".deb")
            })
            .collect())
    }
}
