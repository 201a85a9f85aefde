//! A program that finds no io_uring, as on hosts that forbid it. Linux 6.1 has
//! no switch for that.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// The number of `io_uring_setup`, the same on all architectures.
const IO_URING_SETUP: i64 = 425;
/// What hosts that forbid it answer.
const EPERM: u32 = 1;

/// Replaces this process.
pub fn become_it(command: &[String]) -> Result<()> {
    let (program, args) = command.split_first().context("There is no program")?;
    let filter = SeccompFilter::new(
        BTreeMap::from([(IO_URING_SETUP, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(EPERM),
        TargetArch::x86_64,
    )
    .context("Cannot make the filter")?;
    let program_of_filter = BpfProgram::try_from(filter).context("Cannot compile the filter")?;
    apply_filter(&program_of_filter).context("Cannot apply the filter")?;
    Err(Command::new(program).args(args).exec()).with_context(|| format!("Cannot start {program}"))
}
