//! A clean Debian with a kernel, in a folder, to install packages in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::artifact::kernel::Kernel;
use crate::artifact::packages::MIRROR;
use crate::artifact::stamp::{self, Inputs};
use crate::command::{bound_command, command, output};
use crate::progress::step;
use crate::tree::Tree;

/// What stands between `apt-get` and being quick: none of it matters in a root
/// that is thrown away.
const DPKG_SETTINGS: &str = "force-unsafe-io\n";

/// The folder; gone when dropped.
pub struct CleanRoot {
    path: PathBuf,
}

impl CleanRoot {
    /// A root with the distribution's kernel, its headers and its source, as a
    /// host has them before our package comes.
    pub fn make(tree: &Tree, suite: &str, kernel: &Kernel) -> Result<CleanRoot> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "A clean root takes root to make and to enter: run this as root"
        );
        let include = format!(
            "ca-certificates,kmod,{},{},{}",
            kernel.image_package(),
            kernel.headers_package(),
            kernel.source_package()
        );
        let archive = tree.cache().join(format!("clean-{suite}.tar"));
        let hash = Inputs::new()
            .value(&include)
            .value(&kernel.version)
            .value(DPKG_SETTINGS)
            .hash();
        stamp::unless_current(&archive, &hash, || {
            step(&format!("Making a clean {suite}"), || {
                let setup = format!(
                    "--setup-hook=mkdir -p \"$1/etc/dpkg/dpkg.cfg.d\" && \
                     printf '{}' > \"$1/etc/dpkg/dpkg.cfg.d/lab\"",
                    DPKG_SETTINGS.replace('\n', "\\n")
                );
                output(
                    command("mmdebstrap", ["--variant=minbase", "--quiet"])
                        .arg(setup)
                        .arg(format!("--include={include}"))
                        .arg(suite)
                        .arg(&archive),
                )
                .map(drop)
            })
        })?;
        let path = tree.lab().join("clean-root");
        let root = CleanRoot { path };
        root.remove()?;
        fs::create_dir_all(&root.path)
            .with_context(|| format!("Cannot make {}", root.path.display()))?;
        output(
            command("tar", ["-x", "-C"])
                .arg(&root.path)
                .arg("-f")
                .arg(&archive),
        )?;
        for name in ["etc/resolv.conf", "etc/hosts"] {
            let _ = fs::copy(Path::new("/").join(name), root.path.join(name));
        }
        root.run("apt-get update -q")?;
        Ok(root)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds another suite, from which nothing comes unless it is asked for.
    pub fn add_suite(&self, suite: &str) -> Result<()> {
        let list = self
            .path
            .join(format!("etc/apt/sources.list.d/{suite}.list"));
        fs::write(&list, format!("deb {MIRROR} {suite} main\n"))
            .with_context(|| format!("Cannot write {}", list.display()))?;
        self.run("apt-get update -q").map(drop)
    }

    /// Puts a file into its `/tmp`; returns the path inside.
    pub fn put(&self, file: &Path) -> Result<String> {
        let name = file.file_name().context("The file has no name")?;
        let inside = Path::new("/tmp").join(name);
        fs::copy(file, self.path.join("tmp").join(name))
            .with_context(|| format!("Cannot copy {}", file.display()))?;
        Ok(inside.to_string_lossy().into_owned())
    }

    /// Runs a shell script in it; returns all that it printed.
    pub fn run(&self, script: &str) -> Result<String> {
        let out = output(&mut self.shell(&format!("exec 2>&1\n{script}")))?;
        Ok(String::from_utf8_lossy(&out).trim_end().to_owned())
    }

    fn shell(&self, script: &str) -> Command {
        let mut shell = bound_command(
            "unshare",
            ["--mount", "--pid", "--fork", "--kill-child", "chroot"],
        );
        shell
            .arg(&self.path)
            .args(["/bin/sh", "-euc"])
            .arg(format!(
                "mount -t proc proc /proc\nmount -t sysfs sys /sys\n{script}"
            ))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        shell
    }

    fn remove(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        fs::remove_dir_all(&self.path)
            .with_context(|| format!("Cannot remove {}", self.path.display()))
    }
}

impl Drop for CleanRoot {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}
