//! A VM's figures as its file in debugfs shows them, whatever VMM it has.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::debugfs_vms;

/// What the file says of the whole VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugfsTable {
    /// KVM's own count of exits.
    pub own: u64,
    /// Ticks in the guest.
    pub guest: u64,
    /// Exits of all reasons.
    pub exits: u64,
    /// Ticks in the kernel.
    pub cycles: u64,
    /// Ticks asleep.
    pub blocked: u64,
    /// Ticks in user space.
    pub userspace: u64,
}

impl DebugfsTable {
    /// The figures of a process's only VM.
    pub fn of_process(pid: u32) -> Result<DebugfsTable> {
        let vms = debugfs_vms(pid)?;
        ensure!(
            vms.len() == 1,
            "Process {pid} has {} VMs, not one",
            vms.len()
        );
        let path = vms[0].join("exit_stats");
        let text =
            fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        parse(&text).with_context(|| format!("{} says {text:?}", path.display()))
    }

    /// Ticks in all four places.
    pub fn life(&self) -> u64 {
        self.guest + self.cycles + self.blocked + self.userspace
    }
}

fn parse(text: &str) -> Result<DebugfsTable> {
    let after = |name: &str| -> Result<Vec<u64>> {
        text.lines()
            .find_map(|line| line.trim_start().strip_prefix(name))
            .with_context(|| format!("There is no {name:?}"))?
            .split_whitespace()
            .map(|word| {
                word.parse()
                    .with_context(|| format!("{word:?} is no number"))
            })
            .collect()
    };
    let one = |name: &str| Ok(*after(name)?.first().context("There is no number")?);
    let (own, guest): (Result<u64>, Result<u64>) = (one("exits "), one("guest_cycles "));
    let [exits, cycles, blocked, userspace] = after("total ")?[..] else {
        anyhow::bail!("The total is not of four numbers");
    };
    Ok(DebugfsTable {
        own: own?,
        guest: guest?,
        exits,
        cycles,
        blocked,
        userspace,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_read_by_its_names() {
        let text = "isa SVM\nvcpus 1\ntsc_khz 1000\naccounting on\nexits 7\nguest_cycles 90\n\n\
            reason name  handler exits cycles blocked_cycles userspace_cycles\n\
            0x72 CPUID yes 7 1 2 3\n       total                       7   1   2   3\n";
        let table = parse(text).unwrap();
        assert_eq!((table.own, table.exits, table.life()), (7, 7, 96));
    }
}
