//! Debian packages that the lab's programs come from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command::{command, output, text};
use crate::progress::step;
use crate::tree::Tree;

/// For emulated hosts: emulators, firmware, what packs their images.
const HOST: &[&str] = &[
    "bochs",
    "bochsbios",
    "bochs-term",
    "vgabios",
    "qemu-system-x86",
    "seabios",
    "isolinux",
    "syslinux-common",
    "xorriso",
    "busybox-static",
    "xz-utils",
];

/// For trials with the programs that operators use, and `qemu-img` for a unit test.
pub const TOOLS: &[&str] = &["tmux", "zsh", "fish", "python3-venv", "qemu-utils"];

/// For `cargo lab look`.
pub const BROWSER: &[&str] = &["chromium", "fonts-dejavu-core"];

/// For building kernel modules.
const MODULES: &[&str] = &[
    "gcc",
    "make",
    "patch",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "pahole",
    "kmod",
    // For the gates of `cargo lab test` on the kernel side.
    "sparse",
    "perl",
    // For the kernel's selftests.
    "rsync",
];

/// For `cargo lab package`.
pub const PACKAGING: &[&str] = &["debhelper", "dh-dkms", "dpkg-dev"];

/// For its test: a clean root and the disk of a host that boots from it.
pub const CLEAN_ROOT: &[&str] = &["mmdebstrap", "e2fsprogs"];

/// For Debian as a guest.
pub const DEBIAN_GUEST: &[&str] = &[
    "mmdebstrap",
    "e2fsprogs",
    "qemu-utils",
    // For the disk that firmware boots.
    "dosfstools",
    "fdisk",
    "mtools",
];

/// For measuring disks and networks.
pub const MEASURES: &[&str] = &["fio", "iperf3", "e2fsprogs"];

/// Where packages of other releases come from, and what signs them.
pub(crate) const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";

/// Installs what is missing when we may, else says which one command does.
pub fn ensure_installed() -> Result<()> {
    ensure_installed_with(&[])
}

/// The same, with what only some commands need.
pub fn ensure_installed_with(more: &[&'static str]) -> Result<()> {
    let missing = missing(more)?;
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!(
        "apt-get install -y --no-install-recommends {}",
        missing.join(" ")
    );
    if !rustix::process::geteuid().is_root() {
        bail!(
            "Packages are missing. This installs them:\n\n    sudo sh -c 'apt-get update && {install}'\n"
        );
    }
    step(&format!("Installing {} packages", missing.len()), || {
        refresh_lists()?;
        let mut apt = command("sh", ["-c", &install]);
        output(apt.env("DEBIAN_FRONTEND", "noninteractive"))?;
        Ok(())
    })
}

fn missing(more: &[&'static str]) -> Result<Vec<&'static str>> {
    let out = Command::new("dpkg-query")
        .args(["-W", "-f=${Package} ${db:Status-Status}\n"])
        .args(HOST)
        .args(MODULES)
        .args(more)
        .stderr(Stdio::null())
        .output()
        .context("Cannot start dpkg-query: the lab needs Debian or a relative of it")?;
    let listed = String::from_utf8_lossy(&out.stdout).into_owned();
    let installed: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    Ok(HOST
        .iter()
        .chain(MODULES)
        .chain(more)
        .copied()
        .filter(|package| !installed.contains(package))
        .collect())
}

/// Fetches the lists of packages when we may.
pub fn refresh_lists() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        output(&mut command("apt-get", ["update", "-q"]))?;
    }
    Ok(())
}

/// The version that apt would install; `None` when it knows no such package.
pub fn candidate(package: &str) -> Result<Option<String>> {
    Apt::default().candidate(package)
}

/// A package of which only the files are wanted, unpacked and not installed: a
/// daemon would be started.
pub fn unpacked(tree: &Tree, package: &str) -> Result<PathBuf> {
    let mut version = candidate(package)?;
    if version.is_none() {
        refresh_lists()?;
        version = candidate(package)?;
    }
    let version = version.with_context(|| format!("apt knows no {package}"))?;
    let dir = tree.cache().join(format!("{package}-{version}"));
    if !dir.exists() {
        step(&format!("Downloading {package} {version}"), || {
            download(package, &version, &dir)
        })?;
    }
    Ok(dir)
}

/// The same from another release of Debian than this machine's, whose lists of
/// packages stay as they are. Once here, it stays.
pub fn unpacked_from(tree: &Tree, suite: &str, package: &str) -> Result<PathBuf> {
    let dir = tree.cache().join(format!("{package}-{suite}"));
    if !dir.exists() {
        step(&format!("Downloading {package} from {suite}"), || {
            let apt = Apt::of(tree, Some(suite))?;
            unpack(
                apt.command("apt-get", &["download", package]),
                package,
                &dir,
            )
        })?;
    }
    Ok(dir)
}

/// apt for one release of Debian: this machine's with its own lists of packages,
/// or another with lists of ours.
#[derive(Clone, Debug, Default)]
pub struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// The release; another one's lists are fetched.
    pub fn of(tree: &Tree, suite: Option<&str>) -> Result<Apt> {
        let Some(suite) = suite else {
            return Ok(Apt::default());
        };
        let apt = Apt::of_suite(tree, suite)?;
        apt.refresh_lists()?;
        Ok(apt)
    }

    /// Another release than this machine's, with the lists that were fetched last.
    pub fn of_suite(tree: &Tree, suite: &str) -> Result<Apt> {
        let lists = tree.cache().join(format!("apt-{suite}"));
        fs::create_dir_all(lists.join("partial"))?;
        // Not among the lists, which apt clears of what it does not know.
        let sources = lists.with_extension("list");
        fs::write(&sources, format!("deb {KEYRING} {MIRROR} {suite} main\n"))?;
        let options = [
            ("Dir::Etc::sourcelist", sources.as_path()),
            ("Dir::Etc::sourceparts", Path::new("/dev/null")),
            ("Dir::State::lists", &lists),
            ("Dir::Cache::pkgcache", Path::new("")),
            ("Dir::Cache::srcpkgcache", Path::new("")),
        ]
        .iter()
        .flat_map(|(key, value)| ["-o".to_owned(), format!("{key}={}", value.display())])
        .collect();
        Ok(Apt { options })
    }

    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut apt = command(program, ["-q"]);
        apt.env("LC_ALL", "C").args(&self.options).args(words);
        apt
    }

    /// Fetches the lists of packages when we may.
    pub fn refresh_lists(&self) -> Result<()> {
        if !self.options.is_empty() || rustix::process::geteuid().is_root() {
            output(&mut self.command("apt-get", &["update"]))?;
        }
        Ok(())
    }

    /// The version that apt would install; `None` when it knows no such package.
    pub fn candidate(&self, package: &str) -> Result<Option<String>> {
        let shown = text(&mut self.command("apt-cache", &["policy", package]))?;
        Ok(shown
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Candidate: "))
            .find(|version| *version != "(none)")
            .map(str::to_owned))
    }

    /// What a package depends on.
    pub fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let shown = text(&mut self.command("apt-cache", &["depends", package]))?;
        Ok(shown
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    /// Downloads a package to a folder that holds no other; says where it is.
    pub fn download(&self, package: &str, dir: &Path) -> Result<PathBuf> {
        output(
            self.command("apt-get", &["download", package])
                .current_dir(dir),
        )?;
        archives_in(dir, package)?
            .pop()
            .with_context(|| format!("apt-get brought no archive of {package}"))
    }

    /// Downloads packages of one version and unpacks them to `dir`, which appears
    /// only when whole.
    pub fn unpacked(&self, packages: &[String], version: &str, dir: &Path) -> Result<()> {
        let wanted: Vec<String> = packages
            .iter()
            .map(|package| format!("{package}={version}"))
            .collect();
        let mut words = vec!["download"];
        words.extend(wanted.iter().map(String::as_str));
        unpack(self.command("apt-get", &words), &wanted.join(" "), dir)
    }
}

fn archives_in(dir: &Path, wanted: &str) -> Result<Vec<PathBuf>> {
    let archives: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "deb"))
        .collect();
    anyhow::ensure!(
        !archives.is_empty(),
        "apt-get brought no archive of {wanted}"
    );
    Ok(archives)
}

/// Downloads a package and unpacks it to `dir`, which appears only when whole.
pub fn download(package: &str, version: &str, dir: &Path) -> Result<()> {
    Apt::default().unpacked(&[package.to_owned()], version, dir)
}

fn unpack(mut download: Command, wanted: &str, dir: &Path) -> Result<()> {
    let partial = dir.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    output(download.current_dir(&partial))?;
    for archive in archives_in(&partial, wanted)? {
        output(command("dpkg", ["-x"]).arg(&archive).arg(&partial))?;
        fs::remove_file(&archive)?;
    }
    fs::rename(&partial, dir).with_context(|| format!("Cannot make {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_package_is_listed_twice() {
        let mut all: Vec<_> = HOST.iter().chain(MODULES).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), HOST.len() + MODULES.len());
    }
}
