//! Debian packages.

use anyhow::{Context, Result};

use crate::artifact::packages::{CLEAN_ROOT, PACKAGING, ensure_installed_with};
use crate::package::RECIPES;
use crate::progress::step;
use crate::tree::Tree;

/// Makes all packages; `test` also lives through the life of those that have
/// one to speak of.
pub fn package(tree: &Tree, test: bool) -> Result<()> {
    let needed = if test {
        [PACKAGING, CLEAN_ROOT].concat()
    } else {
        PACKAGING.to_vec()
    };
    ensure_installed_with(&needed)?;
    for recipe in RECIPES {
        let made = step(&format!("Packing {}", recipe.name), || recipe.build(tree))?;
        println!("{}", made.display());
        if test && let Some(life) = recipe.life {
            life(tree, &made).with_context(|| format!("The life of {}", recipe.name))?;
        }
    }
    Ok(())
}
