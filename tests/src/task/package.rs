//! Debian packages.

use anyhow::Result;

use crate::artifact::packages::{PACKAGING, ensure_installed_with};
use crate::package::RECIPES;
use crate::progress::step;
use crate::tree::Tree;

/// Makes all packages.
pub fn package(tree: &Tree) -> Result<()> {
    ensure_installed_with(PACKAGING)?;
    for recipe in RECIPES {
        let made = step(&format!("Packing {}", recipe.name), || recipe.build(tree))?;
        println!("{}", made.display());
    }
    Ok(())
}
