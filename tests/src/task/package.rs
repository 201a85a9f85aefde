//! Debian packages.

use anyhow::{Context, Result, ensure};

use crate::artifact::packages::{CLEAN_ROOT, PACKAGING, ensure_installed_with};
use crate::package::{RECIPES, Release};
use crate::progress::step;
use crate::tree::Tree;

/// Makes all packages, or the one of this name; `test` also lives through the
/// life of those that have one to speak of, on one release of Debian or on all that matter.
pub fn package(
    tree: &Tree,
    name: Option<&str>,
    test: bool,
    release: Option<Release>,
) -> Result<()> {
    let mut wanted = RECIPES
        .into_iter()
        .filter(|recipe| name.is_none_or(|name| name == recipe.name))
        .peekable();
    ensure!(
        wanted.peek().is_some(),
        "No package is called {}; there are {}",
        name.unwrap_or_default(),
        RECIPES.map(|recipe| recipe.name).join(", ")
    );
    let needed = if test {
        [PACKAGING, CLEAN_ROOT].concat()
    } else {
        PACKAGING.to_vec()
    };
    ensure_installed_with(&needed)?;
    for recipe in wanted {
        let made = step(&format!("Packing {}", recipe.name), || recipe.build(tree))?;
        println!("{}", made.display());
        if test && let Some(life) = recipe.life {
            life(tree, &made, release).with_context(|| format!("The life of {}", recipe.name))?;
        }
    }
    Ok(())
}
