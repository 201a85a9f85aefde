//! The tests of the package `hypervisor` on a KVM with hardware: guests of a
//! few instructions, their exits and their saved state.

use anyhow::{Result, ensure};
use lab::command::{command, text};

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "hypervisor",
    applies: |_| true,
    trials: trials![tiny_guests],
};

fn tiny_guests(site: &Site) -> Result<()> {
    let program = site.bin().join("tiny_guests");
    let said = text(
        command(&program.to_string_lossy(), ["--test-threads=1"])
            .env("LAB_KVM_REQUIRED", "1")
            .env("RUST_BACKTRACE", "0"),
    )?;
    ensure!(
        said.contains("test result: ok") && !said.contains("0 passed"),
        "It ran nothing:\n{said}"
    );
    Ok(())
}
