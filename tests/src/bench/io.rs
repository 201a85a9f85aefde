//! What a guest gets of a disk and a network, in our VMM and in QEMU, with the
//! same back end on the same host.

use std::collections::BTreeSet;

use anyhow::Result;

use super::{Equipment, Figures, Section, Verdict, nothing_here, number, words};
use crate::host::Isa;

pub(super) const DISK: Section = Section {
    name: "disk",
    wants: |place| place.patched && place.isa == Isa::Svm,
    equipment: Equipment::Measures,
    here: nothing_here,
    judge: |figures, verdict| judge(&DISK_TABLE, figures, verdict),
};

pub(super) const NET: Section = Section {
    name: "net",
    wants: |place| place.patched && place.isa == Isa::Svm,
    equipment: Equipment::Measures,
    here: nothing_here,
    judge: |figures, verdict| judge(&NET_TABLE, figures, verdict),
};

/// The file system with the programs, in the host.
pub const PROGRAMS: &str = "/lab/measures.img";

/// The folder of drivers that the host loads for this, in the host.
pub const DRIVERS: &str = "/lab/measures";

/// The disk in the host's memory.
pub const BACK_END: &str = "/dev/ram0";

/// Its size in MiB.
pub const SIZE_MIB: u32 = 128;

/// Whose guest a figure is of; the others are peers that were brought along.
pub const OURS: &str = "ours";
/// Debian's QEMU.
pub const QEMU: &str = "qemu";

/// Work of a guest, by a name that is part of its figures' names.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// As it is shown.
    pub name: &'static str,
    /// The program's options.
    pub options: &'static str,
    /// How often what is counted occurs in it: requests, or megabytes.
    pub amount: u32,
}

/// Work of fio.
pub const DISK_WORK: [Work; 5] = [
    Work {
        name: "4 KiB random read, 16 at a time",
        options: "--rw=randread --bs=4k --iodepth=16 --io_size=32m",
        amount: 8192,
    },
    Work {
        name: "4 KiB random write, 16 at a time",
        options: "--rw=randwrite --bs=4k --iodepth=16 --io_size=32m",
        amount: 8192,
    },
    Work {
        name: "4 KiB random read, one at a time",
        options: "--rw=randread --bs=4k --iodepth=1 --io_size=8m",
        amount: 2048,
    },
    Work {
        name: "1 MiB sequential read, 4 at a time",
        options: "--rw=read --bs=1m --iodepth=4 --io_size=256m",
        amount: 256,
    },
    Work {
        name: "1 MiB sequential write, 4 at a time",
        options: "--rw=write --bs=1m --iodepth=4 --io_size=256m",
        amount: 256,
    },
];

/// Work of iperf3.
pub const NET_WORK: [Work; 2] = [
    Work {
        name: "to the host",
        options: "-n 128M",
        amount: 128,
    },
    Work {
        name: "to the guest",
        options: "-R -n 128M",
        amount: 128,
    },
];

/// The name of a rate's figure.
pub fn rate(vmm: &str, work: &Work) -> String {
    format!("rate {vmm} {}", work.name)
}

/// The name of the figure of exits that a piece of work took.
pub fn exits(vmm: &str, work: &Work) -> String {
    format!("exits {vmm} {}", work.name)
}

struct Table {
    heading: &'static str,
    rate: &'static str,
    per: &'static str,
    note: &'static str,
    work: &'static [Work],
}

const DISK_TABLE: Table = Table {
    heading: "A guest's disk, by fio",
    rate: "requests a second",
    per: "exits a request",
    note: "SVM, counting instructions: a second is a thousand million of them. One host CPU, one vCPU, \
           virtio-pci in both. The back end is a disk in the host's memory (brd), opened with O_DIRECT and \
           driven through io_uring by both; QEMU is Debian's, its machine microvm with PCI, its disk on a \
           thread of its own. Exits are all that the guest had meanwhile, those of fio's own start too.",
    work: &DISK_WORK,
};

const NET_TABLE: Table = Table {
    heading: "A guest's network, by iperf3",
    rate: "Mbit/s",
    per: "exits a MiB",
    note: "The same hosts and guests. The back end is a tap with offloads, read and written by the VMM \
           itself (QEMU without vhost); the server of iperf3 runs on the host's only CPU too.",
    work: &NET_WORK,
};

fn judge(table: &Table, figures: &Figures, verdict: &mut Verdict) -> Result<()> {
    if !figures.isas().contains(&Isa::Svm) {
        return Ok(());
    }
    verdict.heading(table.heading);
    verdict.note(table.note);
    // A goal has an upper limit: QEMU's rate as a part of ours.
    let mut goals = Vec::new();
    for (work, ours, its) in compare(table, figures, "QEMU", QEMU, verdict)? {
        goals.push((
            format!("{}, QEMU's rate as part of ours", work.name),
            its.rate / ours.rate,
            1.0,
        ));
        goals.push((
            format!("{}, {}", work.name, table.per),
            ours.exits,
            its.exits,
        ));
    }
    for peer in peers(table, figures) {
        compare(table, figures, peer, peer, verdict)?;
    }
    verdict.heading("Goals");
    for (what, value, limit) in goals {
        verdict.at_most(&what, value, limit);
    }
    Ok(())
}

/// What was measured of one guest at one piece of work.
struct Measured {
    rate: f64,
    /// Of a request or megabyte.
    exits: f64,
}

/// The peers that were measured in this run.
fn peers<'a>(table: &'a Table, figures: &'a Figures) -> BTreeSet<&'a str> {
    let rates = figures.beginning(Isa::Svm, true, "rate ");
    rates
        .filter_map(|(rest, _)| rest.split_once(' '))
        .filter(|(vmm, work)| {
            ![OURS, QEMU].contains(vmm) && table.work.iter().any(|known| known.name == *work)
        })
        .map(|(vmm, _)| vmm)
        .collect()
}

/// A table of ours and another one.
fn compare<'a>(
    table: &'a Table,
    figures: &Figures,
    title: &str,
    other: &str,
    verdict: &mut Verdict,
) -> Result<Vec<(&'a Work, Measured, Measured)>> {
    let measured = |vmm: &str, work: &Work| -> Result<Measured> {
        let get = |name: String| figures.get(Isa::Svm, true, &name);
        Ok(Measured {
            rate: get(rate(vmm, work))?,
            exits: get(exits(vmm, work))? / f64::from(work.amount),
        })
    };
    let mut rows = vec![vec![
        String::new(),
        format!("{}, ours", table.rate),
        title.to_owned(),
        "ratio".to_owned(),
        format!("{}, ours", table.per),
        title.to_owned(),
    ]];
    let mut found = Vec::new();
    for work in table.work {
        let (ours, its) = (measured(OURS, work)?, measured(other, work)?);
        let mut row = words(&[work.name]);
        row.extend([
            number(ours.rate.round()),
            number(its.rate.round()),
            format!("{:.2}", ours.rate / its.rate),
            format!("{:.2}", ours.exits),
            format!("{:.2}", its.exits),
        ]);
        rows.push(row);
        found.push((work, ours, its));
    }
    verdict.table(&rows);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Place;

    #[test]
    fn a_peer_has_a_table_of_its_own_and_no_goals() {
        let mut figures = Figures::default();
        let place = Place {
            isa: Isa::Svm,
            patched: true,
        };
        for (vmm, value) in [(OURS, 30.0), (QEMU, 20.0), ("ch-54.0", 7.0)] {
            for work in &NET_WORK {
                figures.put(place, &rate(vmm, work), value);
                figures.put(place, &exits(vmm, work), 128.0);
            }
        }
        let mut verdict = Verdict::default();
        judge(&NET_TABLE, &figures, &mut verdict).unwrap();
        let text = verdict.text();
        assert!(text.contains("ch-54.0") && text.contains("4.29"), "{text}");
        assert_eq!(text.matches("as part of ours").count(), NET_WORK.len());
        // Other work has other figures.
        assert!(peers(&DISK_TABLE, &figures).is_empty());
    }
}
