//! A VM that does nothing but exist.
//!
//! While one is there, KVM's static keys in the scheduler and in the local
//! APIC's paths stay as they are when others come and go, and the kernel
//! patches none of its text for them. `lab::host::Qemu` says who needs that.

use std::fs;
use std::thread::park;

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;

/// Where the host's init leaves the number of the process that keeps the VM.
const PROCESS: &str = "/tmp/kept-vm";

/// Makes the VM and holds it until this process is killed.
pub fn keep() -> Result<()> {
    let vm = Kvm::new()
        .and_then(|kvm| kvm.create_vm())
        .context("Cannot make a VM")?;
    vm.create_irq_chip()
        .context("Cannot make its interrupt controllers")?;
    // Its local APIC, never enabled, keeps the key for disabled ones.
    let _vcpu = vm.create_vcpu(0).context("Cannot make its vCPU")?;
    loop {
        park();
    }
}

/// The process that keeps a VM on this host, where one does.
pub fn process() -> Option<u32> {
    fs::read_to_string(PROCESS).ok()?.trim().parse().ok()
}
