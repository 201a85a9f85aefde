//! What it takes to boot Linux to its first program.

use std::collections::BTreeSet;

use anyhow::Result;

use super::{Equipment, Figures, Section, Verdict, nothing_here, number, words};
use crate::host::Isa;

/// As it is chosen on the command line.
pub const NAME: &str = "boot";

pub(super) const SECTION: Section = Section {
    name: NAME,
    wants: |place| place.patched,
    equipment: Equipment::None,
    here: nothing_here,
    judge,
};

/// The guest's command line, the same for all.
pub const CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 reboot=k lpj=1000000 tsc=reliable mitigations=off";

/// VM exits until then.
pub const EXITS: &str = "boot_exits";
/// The same of one reason, whose name follows.
pub const EXITS_OF: &str = "boot_exits_of ";
/// Seconds from the start of the VMM's process.
pub const SECONDS: &str = "boot_seconds";
/// Seconds of the guest's own clock.
pub const UPTIME: &str = "boot_uptime";
/// Seconds from the guest's decision to reboot to the same program; where a boot
/// does not take too long to have another.
pub const REBOOT: &str = "reboot_seconds";
/// Bytes of the VMM's memory besides the guest's.
pub const MEMORY: &str = "vmm_bytes";
/// Bytes of the stripped program.
pub const PROGRAM: &str = "program_bytes";

/// The name of Debian's QEMU among the peers.
pub const QEMU: &str = "QEMU-microvm";

/// The name of a peer's figure.
pub fn of_peer(peer: &str, figure: &str) -> String {
    format!("peer/{peer}/{figure}")
}

/// What Firecracker promises for the VMM's memory beyond the guest's.
const MEMORY_LIMIT: f64 = 5.0 * 1024.0 * 1024.0;
const PROGRAM_LIMIT: f64 = 6e6;

fn judge(figures: &Figures, verdict: &mut Verdict) -> Result<()> {
    verdict.heading("Booting Linux 6.1 to its first program, 1 vCPU, 256 MiB");
    verdict.note(
        "Each program boots the same kernel, initramfs and command line, one after the other in \
         one run on one host. Exits are KVM's own count for the process, seconds go from the \
         start of the process to a line of the guest's first program, and memory is the \
         process's own besides the guest's. A reboot takes from the guest's `reboot -f` to the same \
         line.",
    );
    for isa in figures.isas() {
        let name = isa.as_str().to_uppercase();
        let mut rows = vec![words(&[
            &name,
            "exits",
            "seconds",
            "guest's seconds",
            "VMM's MB",
            "reboot's seconds",
        ])];
        for peer in [None]
            .into_iter()
            .chain(peers(figures, isa).into_iter().map(Some))
        {
            let mut row = vec![peer.unwrap_or("ours").to_owned()];
            let name_of =
                |figure: &str| peer.map_or(figure.to_owned(), |peer| of_peer(peer, figure));
            for figure in [EXITS, SECONDS, UPTIME, MEMORY] {
                let figure_of = name_of(figure);
                let value = figures.get(isa, true, &figure_of)?;
                row.push(number(if figure == MEMORY { value / 1e6 } else { value }));
            }
            let reboot = figures.get(isa, true, &name_of(REBOOT));
            row.push(reboot.map_or("not measured".to_owned(), number));
            rows.push(row);
        }
        verdict.table(&rows);
        reasons(figures, isa, verdict);
    }
    if let Some(isa) = figures.isas().first() {
        let program = figures.get(*isa, true, PROGRAM)?;
        verdict.note(&format!(
            "The VMM's program, static and stripped: {} bytes",
            number(program)
        ));
    }
    verdict.heading("Goals");
    for isa in figures.isas() {
        verdict.at_most(
            &format!(
                "{}, bytes of the VMM beyond the guest's",
                isa.as_str().to_uppercase()
            ),
            figures.get(isa, true, MEMORY)?,
            MEMORY_LIMIT,
        );
    }
    if let Some(isa) = figures.isas().first() {
        verdict.at_most(
            "Bytes of the program",
            figures.get(*isa, true, PROGRAM)?,
            PROGRAM_LIMIT,
        );
    }
    Ok(())
}

/// The peers that were measured in this run, by name.
fn peers(figures: &Figures, isa: Isa) -> BTreeSet<&str> {
    figures
        .beginning(isa, true, "peer/")
        .filter_map(|(rest, _)| Some(rest.split_once('/')?.0))
        .collect()
}

/// Which exits they are, most first.
fn reasons(figures: &Figures, isa: Isa, verdict: &mut Verdict) {
    let mut found: Vec<(&str, f64)> = figures.beginning(isa, true, EXITS_OF).collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    let name = isa.as_str().to_uppercase();
    verdict.note(&format!("Ours by reason, {name}:"));
    let mut rows = vec![words(&["", "exits"])];
    rows.extend(
        found
            .into_iter()
            .map(|(reason, exits)| vec![reason.to_owned(), number(exits)]),
    );
    verdict.table(&rows);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Place;

    const PLACE: Place = Place {
        isa: Isa::Svm,
        patched: true,
    };

    /// All that a host says of one program.
    fn measured(figures: &mut Figures, name_of: impl Fn(&str) -> String) {
        for (figure, value) in [(EXITS, 7.0), (SECONDS, 1.5), (UPTIME, 1.25), (MEMORY, 3e6)] {
            figures.put(PLACE, &name_of(figure), value);
        }
    }

    #[test]
    fn peers_are_shown_where_they_were_measured_and_only_there() {
        let mut figures = Figures::default();
        measured(&mut figures, str::to_owned);
        figures.put(PLACE, PROGRAM, 4e6);
        let mut alone = Verdict::default();
        judge(&figures, &mut alone).unwrap();
        assert_eq!(alone.text().matches("1.50").count(), 1, "{}", alone.text());

        measured(&mut figures, |figure| of_peer("other", figure));
        let mut beside = Verdict::default();
        judge(&figures, &mut beside).unwrap();
        assert!(beside.text().contains("other"));
        assert_eq!(beside.text().matches("1.50").count(), 2);
    }

    #[test]
    fn a_peer_that_was_measured_in_part_is_an_error() {
        let mut figures = Figures::default();
        measured(&mut figures, str::to_owned);
        figures.put(PLACE, PROGRAM, 4e6);
        figures.put(PLACE, &of_peer("other", EXITS), 7.0);
        assert!(judge(&figures, &mut Verdict::default()).is_err());
    }
}
