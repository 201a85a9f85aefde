//! The guide as a book.

use anyhow::Result;

use crate::artifact::packages;
use crate::command::{command, output, text};
use crate::progress::step;
use crate::tools;
use crate::tree::Tree;

/// The release of mdBook that is taken.
const MDBOOK: &str = "0.5.4";

/// Builds `docs/` as a book in `target/book` and opens every page of it in
/// Chromium.
pub fn book(tree: &Tree) -> Result<()> {
    packages::ensure_installed_with(packages::BROWSER)?;
    let root = tree.lab().join("mdbook");
    let program = root.join("bin/mdbook");
    let has_it = text(command(&program.to_string_lossy(), ["--version"]).current_dir(tree.root()))
        .is_ok_and(|version| version == format!("mdbook v{MDBOOK}"));
    if !has_it {
        step("Building mdBook, once: some minutes", || {
            let mut install = command("cargo", ["install", "--locked", "--force", "mdbook"]);
            install
                .args(["--version", MDBOOK, "--no-default-features"])
                .args(["--features", "search", "--root"])
                .arg(&root)
                .current_dir(tree.root());
            output(&mut install)
        })?;
    }
    let mut build = command(&program.to_string_lossy(), ["build"]);
    output(build.arg(tree.root().join("docs")))?;
    println!("{}", tree.root().join("target/book/index.html").display());
    tools::look_at_book(tree)
}
