//! What it takes to boot Linux to its first program.

use anyhow::Result;

use super::{Figures, Section, Verdict, number, words};
use crate::host::Isa;

pub(super) const SECTION: Section = Section {
    name: "boot",
    wants: |place| place.patched,
    judge,
};

/// The guest's command line, the same for all.
pub const CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 reboot=k lpj=1000000 tsc=reliable mitigations=off";

/// VM exits until then.
pub const EXITS: &str = "boot_exits";
/// Seconds from the start of the VMM's process.
pub const SECONDS: &str = "boot_seconds";
/// Seconds of the guest's own clock.
pub const UPTIME: &str = "boot_uptime";
/// Bytes of the VMM's memory besides the guest's.
pub const MEMORY: &str = "vmm_bytes";
/// Bytes of the stripped program.
pub const PROGRAM: &str = "program_bytes";

/// A peer's figures for the same work on the same hosts: SVM exits, seconds,
/// uptime, memory in MB, VMX exits.
const PEERS: [(&str, [Option<f64>; 5]); 3] = [
    (
        "Cloud Hypervisor 54.0-dev",
        [
            Some(3155.0),
            Some(1.97),
            Some(1.52),
            Some(7.3),
            Some(3134.0),
        ],
    ),
    (
        "QEMU 7.2 microvm",
        [Some(4381.0), Some(2.13), Some(1.51), Some(49.0), None],
    ),
    (
        "kvmtool",
        [
            Some(35615.0),
            Some(2.10),
            Some(1.63),
            Some(1.2),
            Some(35943.0),
        ],
    ),
];

/// Cloud Hypervisor's own promise for the VMM's memory beyond the guest's.
const MEMORY_LIMIT: f64 = 10.0 * 1024.0 * 1024.0;

fn judge(figures: &Figures, verdict: &mut Verdict) -> Result<()> {
    verdict.heading("Booting Linux 6.1 to its first program, 1 vCPU, 256 MiB");
    let mut rows = vec![words(&[
        "",
        "SVM exits",
        "seconds",
        "guest's seconds",
        "VMM's MB",
        "VMX exits",
    ])];
    let own = |isa, figure| figures.get(isa, true, figure).ok();
    let mega = |bytes: f64| bytes / 1e6;
    let ours = [
        own(Isa::Svm, EXITS),
        own(Isa::Svm, SECONDS),
        own(Isa::Svm, UPTIME),
        own(Isa::Svm, MEMORY).map(mega),
        own(Isa::Vmx, EXITS),
    ];
    for (name, values) in [("ours", ours)].into_iter().chain(PEERS) {
        let mut row = vec![name.to_owned()];
        row.extend(values.map(|value| value.map_or("–".to_owned(), number)));
        rows.push(row);
    }
    verdict.table(&rows);
    if let Some(isa) = figures.isas().first() {
        let program = figures.get(*isa, true, PROGRAM)?;
        verdict.note(&format!(
            "The VMM's program, static and stripped: {} bytes",
            number(program)
        ));
    }
    verdict.heading("Goals");
    let peer = PEERS[0].1;
    if let Some(exits) = own(Isa::Svm, EXITS) {
        verdict.at_most(
            "SVM, exits, no more than Cloud Hypervisor",
            exits,
            peer[0].unwrap_or(0.0),
        );
    }
    if let Some(exits) = own(Isa::Vmx, EXITS) {
        verdict.at_most(
            "VMX, exits, no more than Cloud Hypervisor",
            exits,
            peer[4].unwrap_or(0.0),
        );
    }
    if let Some(seconds) = own(Isa::Svm, SECONDS) {
        verdict.at_most(
            "SVM, seconds, no more than Cloud Hypervisor",
            seconds,
            peer[1].unwrap_or(0.0),
        );
    }
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
    Ok(())
}
