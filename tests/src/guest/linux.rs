//! A Linux guest that runs one script.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::artifact::cpio::Cpio;

/// Start of the line that the guest's init prints first.
pub const UP: &str = "@guest up ";

/// Start of the line that ends the script, before its exit status.
pub const SCRIPT_END: &str = "@guest exit ";

/// Writes an initramfs whose init runs `script`.
pub fn initramfs(base: &Path, script: &str, to: &Path) -> Result<()> {
    let mut image = fs::read(base).with_context(|| format!("Cannot read {}", base.display()))?;
    image.extend(
        Cpio::new()
            .file("/t/run.sh", 0o755, script.as_bytes())
            .finish(),
    );
    fs::write(to, image).with_context(|| format!("Cannot write {}", to.display()))
}
