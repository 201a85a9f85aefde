//! Debian's kernels: downloaded and unpacked, never installed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::packages;
use crate::progress::step;
use crate::tree::Tree;

/// A kernel series that the lab knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Series {
    /// Debian 12's own.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 12's newer one.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Series::V6_1 => "6.1",
            Series::V6_12 => "6.12",
        }
    }

    fn metapackage(self) -> &'static str {
        match self {
            Series::V6_1 => "linux-image-cloud-amd64",
            Series::V6_12 => "linux-image-6.12-cloud-amd64",
        }
    }
}

/// One kernel of the distribution, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its series.
    pub series: Series,
    /// What `uname -r` says, such as `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The package version of image, headers and source.
    pub version: String,
    cache: PathBuf,
}

/// What is remembered of a series so that apt need not be asked again.
#[derive(Serialize, Deserialize)]
struct Chosen {
    release: String,
    version: String,
}

impl Kernel {
    /// The distribution's current kernel of a series, downloaded if it is not
    /// here yet. Once chosen it stays, so that runs can be compared; remove
    /// `target/lab/cache/kernel-*.json` to look for a newer one.
    pub fn fetch(tree: &Tree, series: Series) -> Result<Kernel> {
        let cache = tree.cache();
        fs::create_dir_all(&cache).with_context(|| format!("Cannot make {}", cache.display()))?;
        let remembered = cache.join(format!("kernel-{}.json", series.as_str()));
        let chosen: Chosen = match fs::read(&remembered) {
            Ok(content) => serde_json::from_slice(&content)
                .with_context(|| format!("{} is damaged", remembered.display()))?,
            Err(_) => {
                let chosen = choose(series)?;
                fs::write(&remembered, serde_json::to_vec_pretty(&chosen)?)?;
                chosen
            }
        };
        let kernel = Kernel {
            series,
            release: chosen.release,
            version: chosen.version,
            cache,
        };
        kernel.unpacked(&kernel.image_package())?;
        Ok(kernel)
    }

    /// The package with the kernel and its modules.
    pub fn image_package(&self) -> String {
        format!("linux-image-{}", self.release)
    }

    /// The package with what modules are built against.
    pub fn headers_package(&self) -> String {
        format!("linux-headers-{}", self.release)
    }

    /// The package with the source of the whole series.
    pub fn source_package(&self) -> String {
        format!("linux-source-{}", self.series.as_str())
    }

    /// The compressed kernel.
    pub fn bzimage(&self) -> PathBuf {
        self.package_dir(&self.image_package())
            .join(format!("boot/vmlinuz-{}", self.release))
    }

    /// A module of the distribution by its path below `kernel/`, without
    /// suffix; the file may end in `.ko` or `.ko.xz`.
    pub fn stock_module(&self, path: &str) -> Result<PathBuf> {
        let base = self
            .package_dir(&self.image_package())
            .join(format!("lib/modules/{}/kernel/{path}", self.release));
        ["ko", "ko.xz"]
            .iter()
            .map(|suffix| base.with_extension(suffix))
            .find(|candidate| candidate.is_file())
            .with_context(|| format!("Linux {} has no module {path}", self.release))
    }

    /// Whether a module is part of the kernel's image instead.
    pub fn has_built_in(&self, path: &str) -> Result<bool> {
        let list = self
            .package_dir(&self.image_package())
            .join(format!("lib/modules/{}/modules.builtin", self.release));
        let text = std::fs::read_to_string(&list)
            .with_context(|| format!("Cannot read {}", list.display()))?;
        let wanted = format!("kernel/{path}.ko");
        Ok(text.lines().any(|line| line == wanted))
    }

    /// The folder with the headers' `.config` and `Module.symvers`.
    pub fn headers(&self) -> Result<PathBuf> {
        let package = self.headers_package();
        Ok(self.unpacked(&package)?.join(format!("usr/src/{package}")))
    }

    /// The distribution's source, as a compressed archive.
    pub fn source_archive(&self) -> Result<PathBuf> {
        let package = self.source_package();
        Ok(self
            .unpacked(&package)?
            .join(format!("usr/src/{package}.tar.xz")))
    }

    fn package_dir(&self, package: &str) -> PathBuf {
        self.cache
            .join("deb")
            .join(format!("{package}_{}", self.version.replace(':', "%")))
    }

    fn unpacked(&self, package: &str) -> Result<PathBuf> {
        let dir = self.package_dir(package);
        if !dir.exists() {
            step(&format!("Downloading {package} {}", self.version), || {
                packages::download(package, &self.version, &dir)
            })?;
        }
        Ok(dir)
    }
}

fn choose(series: Series) -> Result<Chosen> {
    let known = || -> Result<Option<Chosen>> {
        let Some(image) = packages::first_dependency(series.metapackage())? else {
            return Ok(None);
        };
        let Some(version) = packages::candidate(&image)? else {
            return Ok(None);
        };
        Ok(image.strip_prefix("linux-image-").map(|release| Chosen {
            release: release.to_owned(),
            version,
        }))
    };
    // A fresh container has no package lists; ask before fetching them.
    if let Ok(Some(chosen)) = known() {
        return Ok(chosen);
    }
    step("Fetching the lists of packages", packages::refresh_lists)?;
    known()?.with_context(|| {
        format!(
            "apt knows no {}; `apt-get update` as root may help, Debian 12 is needed",
            series.metapackage()
        )
    })
}
