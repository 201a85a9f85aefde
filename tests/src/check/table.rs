//! The C header with the exit-reason tables is generated, and checked in.

use std::fs;

use anyhow::{Context, Result, ensure};
use instrumentation::table::{C_HEADER_PATH, c_header};

use crate::tree::Tree;

/// Writes the header.
pub fn write_table(tree: &Tree) -> Result<()> {
    let path = tree.root().join(C_HEADER_PATH);
    fs::write(&path, c_header()).with_context(|| format!("Cannot write {}", path.display()))
}

/// The header in the tree is the one that the tables make.
pub fn table_is_current(tree: &Tree) -> Result<()> {
    let path = tree.root().join(C_HEADER_PATH);
    let present =
        fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
    ensure!(
        present == c_header(),
        "{C_HEADER_PATH} is not what the tables make; `cargo lab table` writes it"
    );
    Ok(())
}
