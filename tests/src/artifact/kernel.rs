//! Debian's kernels: downloaded and unpacked, never installed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::packages::Apt;
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
    /// The newest, which Debian 13 has among its backports.
    #[value(name = "7.3")]
    V7_3,
}

impl Series {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Series::V6_1 => "6.1",
            Series::V6_12 => "6.12",
            Series::V7_3 => "7.3",
        }
    }

    /// All of them.
    pub const ALL: [Series; 3] = [Series::V6_1, Series::V6_12, Series::V7_3];

    /// The release of Debian that has it, where that is not this machine's.
    fn suite(self) -> Option<&'static str> {
        match self {
            Series::V6_1 | Series::V6_12 => None,
            Series::V7_3 => Some("trixie-backports"),
        }
    }

    fn metapackage(self) -> &'static str {
        match self {
            Series::V6_1 | Series::V7_3 => "linux-image-cloud-amd64",
            Series::V6_12 => "linux-image-6.12-cloud-amd64",
        }
    }
}

/// One kernel of the distribution, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its series, such as `6.1`.
    pub series: String,
    /// What `uname -r` says, such as `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The package version of image, headers and source.
    pub version: String,
    cache: PathBuf,
    archive: Apt,
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
        Kernel::chosen(tree, series.as_str(), series.suite(), series.metapackage())
    }

    /// The current cloud kernel of a release of Debian, in the same way.
    pub fn of_suite(tree: &Tree, suite: &'static str) -> Result<Kernel> {
        Kernel::chosen(tree, suite, Some(suite), "linux-image-cloud-amd64")
    }

    fn chosen(
        tree: &Tree,
        name: &str,
        suite: Option<&'static str>,
        metapackage: &str,
    ) -> Result<Kernel> {
        let cache = tree.cache();
        fs::create_dir_all(&cache).with_context(|| format!("Cannot make {}", cache.display()))?;
        let archive = match suite {
            Some(suite) => Apt::of_suite(tree, suite)?,
            None => Apt::default(),
        };
        let remembered = cache.join(format!("kernel-{name}.json"));
        let chosen: Chosen = match fs::read(&remembered) {
            Ok(content) => serde_json::from_slice(&content)
                .with_context(|| format!("{} is damaged", remembered.display()))?,
            Err(_) => {
                let chosen = choose(metapackage, &archive)?;
                fs::write(&remembered, serde_json::to_vec_pretty(&chosen)?)?;
                chosen
            }
        };
        // 6.1.0-56-cloud-amd64, 6.12.117+deb12-cloud-amd64.
        let series = chosen.release.split('.').take(2).collect::<Vec<_>>();
        let kernel = Kernel {
            series: series.join("."),
            release: chosen.release,
            version: chosen.version,
            cache,
            archive,
        };
        if !kernel.package_dir(&kernel.image_package()).exists() {
            kernel.unpacked(&kernel.image_package(), &kernel.image_parts()?)?;
        }
        Ok(kernel)
    }

    /// The package with the kernel and its modules.
    pub fn image_package(&self) -> String {
        format!("linux-image-{}", self.release)
    }

    /// The packages that bring the files of the kernel: since 7.2 not the one that
    /// names it.
    fn image_parts(&self) -> Result<Vec<String>> {
        let parts =
            ["binary", "modules", "base"].map(|part| format!("linux-{part}-{}", self.release));
        Ok(match self.archive.candidate(&parts[0])? {
            Some(_) => parts.to_vec(),
            None => vec![self.image_package()],
        })
    }

    /// The package with what modules are built against.
    pub fn headers_package(&self) -> String {
        format!("linux-headers-{}", self.release)
    }

    /// The package with the source of the whole series.
    pub fn source_package(&self) -> String {
        format!("linux-source-{}", self.series)
    }

    /// The compressed kernel.
    pub fn bzimage(&self) -> PathBuf {
        let boot = self
            .package_dir(&self.image_package())
            .join(format!("boot/vmlinuz-{}", self.release));
        if boot.is_file() {
            return boot;
        }
        self.modules_dir().join("vmlinuz")
    }

    /// The folder of the distribution's modules and of what lists them.
    fn modules_dir(&self) -> PathBuf {
        let root = self.package_dir(&self.image_package());
        let below = format!("lib/modules/{}", self.release);
        let moved = root.join("usr").join(&below);
        if moved.is_dir() {
            return moved;
        }
        root.join(below)
    }

    /// A module of the distribution by its path below `kernel/`, without
    /// suffix; the file may end in `.ko` or `.ko.xz`.
    pub fn stock_module(&self, path: &str) -> Result<PathBuf> {
        let base = self.modules_dir().join("kernel").join(path);
        ["ko", "ko.xz"]
            .iter()
            .map(|suffix| base.with_extension(suffix))
            .find(|candidate| candidate.is_file())
            .with_context(|| format!("Linux {} has no module {path}", self.release))
    }

    /// Whether a module is part of the kernel's image instead.
    pub fn has_built_in(&self, path: &str) -> Result<bool> {
        let list = self.modules_dir().join("modules.builtin");
        let text = std::fs::read_to_string(&list)
            .with_context(|| format!("Cannot read {}", list.display()))?;
        let wanted = format!("kernel/{path}.ko");
        Ok(text.lines().any(|line| line == wanted))
    }

    /// The folder with the headers' `.config` and `Module.symvers`.
    pub fn headers(&self) -> Result<PathBuf> {
        let package = self.headers_package();
        Ok(self
            .unpacked(&package, std::slice::from_ref(&package))?
            .join(format!("usr/src/{package}")))
    }

    /// The distribution's source, as a compressed archive.
    pub fn source_archive(&self) -> Result<PathBuf> {
        let package = self.source_package();
        Ok(self
            .unpacked(&package, std::slice::from_ref(&package))?
            .join(format!("usr/src/{package}.tar.xz")))
    }

    fn package_dir(&self, package: &str) -> PathBuf {
        self.cache
            .join("deb")
            .join(format!("{package}_{}", self.version.replace(':', "%")))
    }

    /// The folder named after a package with what is in these.
    fn unpacked(&self, package: &str, parts: &[String]) -> Result<PathBuf> {
        let dir = self.package_dir(package);
        if !dir.exists() {
            step(&format!("Downloading {package} {}", self.version), || {
                self.archive.unpacked(parts, &self.version, &dir)
            })?;
        }
        Ok(dir)
    }
}

fn choose(metapackage: &str, archive: &Apt) -> Result<Chosen> {
    let known = || -> Result<Option<Chosen>> {
        let Some(image) = archive
            .dependencies(metapackage)?
            .into_iter()
            .find(|name| name.starts_with("linux-image-"))
        else {
            return Ok(None);
        };
        let Some(version) = archive.candidate(&image)? else {
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
    step("Fetching the lists of packages", || archive.refresh_lists())?;
    known()?.with_context(|| {
        format!(
            "apt knows no {metapackage}; `apt-get update` as root may help, Debian 12 is needed",
        )
    })
}
