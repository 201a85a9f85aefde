//! An emulated host to play in.

use anyhow::Result;

use super::build;
use crate::artifact::kernel::Series;
use crate::host::{self, Isa};
use crate::tree::Tree;

/// Boots a host with our modules and hands over its console.
pub fn shell(tree: &Tree, isa: Isa, series: Series) -> Result<()> {
    let built = build(tree, series)?;
    let image = built.patched_host(tree)?;
    let logs = tree.fresh_log_dir(&format!("shell-{}", isa.as_str()))?;
    match isa {
        Isa::Vmx => eprintln!("lab: Booting, half a minute; Ctrl-] ends the emulator"),
        Isa::Svm => eprintln!("lab: Booting, a few seconds; Ctrl-a x ends the emulator"),
    }
    host::shell(host::emulated(isa), &built.kernel.bzimage(), &image, &logs)
}
