//! The KVM modules as a DKMS package: sources that every host builds for its
//! own kernels.

use std::path::Path;

use anyhow::Result;

use super::{Recipe, VERSION, life};
use crate::command::{command, output};
use crate::tree::Tree;

pub(super) const RECIPE: Recipe = Recipe {
    name: "kvm-exit-stats-dkms",
    make,
    life: Some(life::test),
};

fn make(tree: &Tree, folder: &Path) -> Result<()> {
    let build = tree.root().join("instrumentation/kvm/dkms/build-deb");
    output(command(&build.to_string_lossy(), [VERSION]).arg(folder)).map(drop)
}
