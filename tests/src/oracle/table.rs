//! A VM's figures as its file in debugfs shows them, whatever VMM it has.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::debugfs_vms;

/// One line of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugfsRow {
    /// The manual's number; none for the line of everything else.
    pub number: Option<u32>,
    /// Linux's symbol.
    pub symbol: String,
    /// Whether the running dispatch table has a handler.
    pub handled: bool,
    /// Exits, then ticks in the kernel, asleep, in user space and preempted.
    pub figures: [u64; 5],
}

/// What the file says of the whole VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugfsTable {
    /// The instruction set, in capitals.
    pub isa: String,
    /// vCPUs.
    pub vcpus: u64,
    /// TSC ticks per millisecond.
    pub tsc_khz: u64,
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
    /// Ticks without a CPU, which another task had.
    pub preempted: u64,
    /// Reasons that occurred, in the order of the file.
    pub rows: Vec<DebugfsRow>,
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
        DebugfsTable::of_vm(&vms[0])
    }

    /// The figures of the VM with this folder.
    pub fn of_vm(folder: &Path) -> Result<DebugfsTable> {
        let path = folder.join("exit_stats");
        let text =
            fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} says {text:?}", path.display()))
    }

    /// From the file's text.
    pub fn parse(text: &str) -> Result<DebugfsTable> {
        parse(text)
    }

    /// Ticks in all five places.
    pub fn life(&self) -> u64 {
        self.guest + self.cycles + self.blocked + self.userspace + self.preempted
    }

    /// Exits of one reason, 0 if it did not occur.
    pub fn exits_of(&self, number: u32) -> u64 {
        self.rows
            .iter()
            .find(|row| row.number == Some(number))
            .map_or(0, |row| row.figures[0])
    }
}

fn parse(text: &str) -> Result<DebugfsTable> {
    let (head, rows) = text.split_once("\n\n").context("There is no table")?;
    let after = |name: &str| -> Result<&str> {
        head.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .with_context(|| format!("There is no {name:?}"))
    };
    let mut table = DebugfsTable {
        isa: after("isa")?.to_owned(),
        vcpus: number(after("vcpus")?)?,
        tsc_khz: number(after("tsc_khz")?)?,
        own: number(after("exits")?)?,
        guest: number(after("guest_cycles")?)?,
        ..DebugfsTable::default()
    };
    let mut total = None;
    for line in rows.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["total", exits, cycles, blocked, userspace, preempted] => {
                total = Some(figures([exits, cycles, blocked, userspace, preempted])?);
            }
            [
                reason,
                symbol,
                handled,
                exits,
                cycles,
                blocked,
                userspace,
                preempted,
            ] => {
                table.rows.push(DebugfsRow {
                    number: match reason.strip_prefix("0x") {
                        Some(digits) => Some(
                            u32::from_str_radix(digits, 16)
                                .with_context(|| format!("{reason:?} is no reason"))?,
                        ),
                        None => None,
                    },
                    symbol: symbol.to_owned(),
                    handled: handled == "yes",
                    figures: figures([exits, cycles, blocked, userspace, preempted])?,
                });
            }
            _ => anyhow::bail!("{line:?} is no line of the table"),
        }
    }
    [
        table.exits,
        table.cycles,
        table.blocked,
        table.userspace,
        table.preempted,
    ] = total.context("There is no total")?;
    Ok(table)
}

fn number(word: &str) -> Result<u64> {
    word.parse()
        .with_context(|| format!("{word:?} is no number"))
}

fn figures(words: [&str; 5]) -> Result<[u64; 5]> {
    let mut figures = [0; 5];
    for (figure, word) in figures.iter_mut().zip(words) {
        *figure = number(word)?;
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_read_by_its_names() {
        let text = "isa SVM\nvcpus 1\ntsc_khz 1000\naccounting on\nexits 8\nguest_cycles 90\ntsc_backward 0\n\n\
            reason name  handler exits cycles blocked_cycles userspace_cycles preempted_cycles\n\
            \x20 0x72 CPUID yes 7 1 2 3 4\n\
            \x20    - OTHER no 1 0 0 0 0\n       total                       8   1   2   3   4\n";
        let table = parse(text).unwrap();
        assert_eq!((table.own, table.exits, table.life()), (8, 8, 100));
        assert_eq!((table.exits_of(0x72), table.exits_of(0x78)), (7, 0));
        assert_eq!(table.rows[1].number, None);
        assert!(table.rows[0].handled && !table.rows[1].handled);
    }

    #[test]
    fn line_of_another_shape_is_an_error() {
        let text =
            "isa SVM\nvcpus 1\ntsc_khz 1000\nexits 8\nguest_cycles 90\n\nhead\n0x72 CPUID 7\n";
        assert!(parse(text).is_err());
    }
}
