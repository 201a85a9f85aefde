//! Programs, modules and images.

use std::path::PathBuf;
use std::thread;

use anyhow::{Result, anyhow};

use crate::artifact::kernel::{Kernel, Series};
use crate::artifact::{binaries, guest_image, host_image, modules, packages};
use crate::host::Modules;
use crate::tree::Tree;

/// Everything that a host boots from.
pub struct Built {
    /// The kernel of host and guest.
    pub kernel: Kernel,
    /// The folder with our modules for it.
    pub modules: PathBuf,
    /// The guest's base image.
    pub guest: PathBuf,
}

/// Makes what is missing or out of date.
pub fn build(tree: &Tree, series: Series) -> Result<Built> {
    packages::ensure_installed_with(packages::TOOLS)?;
    let kernel = Kernel::fetch(tree, series)?;
    // Much of either is serial: linking here, unpacking and configuring there.
    let modules = thread::scope(|scope| {
        let programs = scope.spawn(|| binaries::build(tree));
        let modules = modules::build(tree, &kernel);
        programs
            .join()
            .map_err(|_| anyhow!("Building the programs panicked"))??;
        modules
    })?;
    finish(tree, kernel, modules)
}

/// Takes modules and programs as an earlier build left them.
pub fn as_built(tree: &Tree, series: Series) -> Result<Built> {
    let kernel = Kernel::fetch(tree, series)?;
    let modules = tree.modules(&kernel.release);
    for folder in [&modules, &tree.bin()] {
        anyhow::ensure!(
            folder.is_dir(),
            "There is no {}; build first",
            folder.display()
        );
    }
    finish(tree, kernel, modules)
}

fn finish(tree: &Tree, kernel: Kernel, modules: PathBuf) -> Result<Built> {
    let guest = guest_image::build(tree)?;
    Ok(Built {
        kernel,
        modules,
        guest,
    })
}

impl Built {
    /// The root file system of a host with our modules.
    pub fn patched_host(&self, tree: &Tree) -> Result<PathBuf> {
        let modules = Modules::Patched(self.modules.clone());
        host_image::build(tree, &self.kernel, &modules, &self.guest)
    }

    /// The root file system of a host with the distribution's modules.
    pub fn stock_host(&self, tree: &Tree) -> Result<PathBuf> {
        host_image::build(tree, &self.kernel, &Modules::Stock, &self.guest)
    }
}
