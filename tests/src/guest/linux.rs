//! A Linux guest that runs one script.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::artifact::cpio::Cpio;

/// Start of the line that the guest's init prints first.
pub const UP: &str = "@guest up ";

/// Start of the line that ends the script, before its exit status.
pub const SCRIPT_END: &str = "@guest exit ";

/// Writes an initramfs whose init runs `script`.
pub fn initramfs(base: &Path, script: &str, to: &Path) -> Result<()> {
    initramfs_with(base, script, &[], to)
}

/// The same, with files of the host by their path in the guest.
pub fn initramfs_with(
    base: &Path,
    script: &str,
    files: &[(String, PathBuf)],
    to: &Path,
) -> Result<()> {
    let mut image = fs::read(base).with_context(|| format!("Cannot read {}", base.display()))?;
    let mut more = Cpio::new().file("/t/run.sh", 0o755, script.as_bytes());
    for (inside, path) in files {
        more = more.copy(inside, 0o755, path)?;
    }
    image.extend(more.finish());
    fs::write(to, image).with_context(|| format!("Cannot write {}", to.display()))
}
