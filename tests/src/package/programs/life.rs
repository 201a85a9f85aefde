//! A package of programs from installation to removal, in a clean Debian.

use std::path::Path;

use anyhow::{Result, ensure};

use super::super::Release;
use super::Contents;
use crate::command::{command, text};
use crate::progress::step;
use crate::tree::Tree;

/// The root is made, used and thrown away by one call.
pub fn test(
    contents: &Contents,
    tree: &Tree,
    package: &Path,
    release: Option<Release>,
) -> Result<()> {
    let suite = release.unwrap_or(Release::Bookworm).as_str();
    let script = tree.root().join("tests/src/package/programs/life.sh");
    let programs: Vec<&str> = contents.programs.iter().map(|(name, _)| *name).collect();
    let hooks = [
        format!("copy-in {} {} /tmp", package.display(), script.display()),
        format!(
            "chroot \"$1\" sh /tmp/life.sh {} {} >&2",
            contents.package,
            programs.join(" ")
        ),
    ];
    let name = contents.package;
    let said = step(&format!("Installing, using and removing {name}"), || {
        text(
            command(
                "mmdebstrap",
                [
                    "--variant=minbase",
                    "--quiet",
                    "--include=man-db,zsh,fish,systemd",
                    "--format=null",
                ],
            )
            .args(hooks.map(|hook| format!("--customize-hook={hook}")))
            .args([suite, "/dev/null"])
            .env("LC_ALL", "C"),
        )
    })?;
    ensure!(said.is_empty(), "mmdebstrap said {said}");
    println!("test package::{name}_is_installed_used_and_removed ... ok");
    Ok(())
}
