//! What operators see, by the programs that they use.

use anyhow::Result;

use crate::artifact::packages;
use crate::tools;
use crate::tree::Tree;

/// Holds what operators see against their own programs; installs Chromium,
/// which is large, to load the report in it.
pub fn look(tree: &Tree) -> Result<()> {
    packages::ensure_installed_with(packages::BROWSER)?;
    tools::check(tree)?;
    tools::look(tree)
}
