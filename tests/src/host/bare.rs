//! The machine that the lab runs on, when it is a KVM host with our modules.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Isa;

/// Which extension this machine's loaded KVM uses, or why suites cannot run
/// on it.
pub fn isa() -> Result<Isa> {
    if !Path::new("/dev/kvm").exists() {
        bail!("There is no /dev/kvm on this machine");
    }
    let modules = fs::read_to_string("/proc/modules").context("Cannot read /proc/modules")?;
    loaded_isa(&modules).context("Neither kvm-intel nor kvm-amd is loaded on this machine")
}

fn loaded_isa(modules: &str) -> Option<Isa> {
    let loaded = |name: &str| {
        modules
            .lines()
            .any(|line| line.split(' ').next() == Some(name))
    };
    if loaded("kvm_intel") {
        Some(Isa::Vmx)
    } else if loaded("kvm_amd") {
        Some(Isa::Svm)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_vendor_module_decides_the_isa() {
        assert_eq!(
            loaded_isa("kvm 1 1 kvm_amd, Live\nkvm_amd 1 0 - Live\n"),
            Some(Isa::Svm)
        );
        assert_eq!(loaded_isa("kvm_intel 1 0 - Live\n"), Some(Isa::Vmx));
        assert_eq!(loaded_isa("kvm 1 1 - Live\nkvm_pvm 1 0 - Live\n"), None);
    }
}
