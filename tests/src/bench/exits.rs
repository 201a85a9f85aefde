//! What accounting costs: an exit, memory, a reading.

use anyhow::Result;

use super::{Equipment, Figures, Section, Verdict, nothing_here, number, words};

pub(super) const SECTION: Section = Section {
    name: "exits",
    wants: |_| true,
    equipment: Equipment::None,
    here: nothing_here,
    judge,
};

/// Ticks of one CPUID exit, by what is on.
pub const TICKS: &str = "ticks";
/// The same with `exit_stats=0`.
pub const TICKS_OFF: &str = "ticks_off";
/// The same while `kvm_exit` and `kvm_entry` are recorded.
pub const TICKS_TRACED: &str = "ticks_traced";
/// The same while a histogram trigger counts `kvm_exit`.
pub const TICKS_TRIGGER: &str = "ticks_trigger";
/// What each vCPU adds to the ticks of a CPUID that asks for all exits, for all
/// cycles.
pub const LEAF_TICKS: [&str; 2] = ["leaf_exits_ticks_per_vcpu", "leaf_cycles_ticks_per_vcpu"];
/// Bytes of a vCPU's slab object.
pub const VCPU_OBJECT: &str = "vcpu_object";
/// Bytes of its slab a vCPU takes.
pub const VCPU_SLAB: &str = "vcpu_slab";
/// Reads of a statistics file for one answer about a VM, by vCPU.
pub const READS: &str = "reads_per_vcpu";
/// Exits that a number of answers caused.
pub const READ_EXITS: &str = "exits_while_reading";
/// Times that a vCPU's thread ran meanwhile.
pub const READ_SWITCHES: &str = "vcpu_switches_while_reading";

fn judge(figures: &Figures, verdict: &mut Verdict) -> Result<()> {
    verdict.heading("One CPUID exit, in ticks (about instructions)");
    let mut rows = vec![words(&["", "ticks", "over stock"])];
    for isa in figures.isas() {
        let stock = figures.get(isa, false, TICKS)?;
        let name = isa.as_str().to_uppercase();
        for (what, patched, figure) in [
            ("stock KVM", false, TICKS),
            ("exit_stats=0", true, TICKS_OFF),
            ("counting and timing", true, TICKS),
            ("stock, trigger on kvm_exit", false, TICKS_TRIGGER),
            ("stock, perf kvm stat's tracepoints", false, TICKS_TRACED),
        ] {
            let ticks = figures.get(isa, patched, figure)?;
            rows.push(vec![
                format!("{name}, {what}"),
                number(ticks.round()),
                format!("{:+.1}", ticks - stock),
            ]);
        }
    }
    verdict.table(&rows);
    verdict.heading("Memory of a vCPU in the kernel, in bytes");
    let mut rows = vec![words(&["", "object", "share of its slab"])];
    for isa in figures.isas() {
        for patched in [false, true] {
            rows.push(vec![
                format!(
                    "{}, {}",
                    isa.as_str().to_uppercase(),
                    if patched { "ours" } else { "stock" }
                ),
                number(figures.get(isa, patched, VCPU_OBJECT)?),
                number(figures.get(isa, patched, VCPU_SLAB)?),
            ]);
        }
    }
    verdict.table(&rows);
    verdict.heading("Reading a VM's statistics");
    let mut rows = vec![words(&[
        "",
        "preads a vCPU and answer",
        "exits meanwhile",
        "times a vCPU's thread ran",
    ])];
    for isa in figures.isas() {
        rows.push(vec![
            isa.as_str().to_uppercase(),
            number(figures.get(isa, true, READS)?),
            number(figures.get(isa, true, READ_EXITS)?),
            number(figures.get(isa, true, READ_SWITCHES)?),
        ]);
    }
    verdict.table(&rows);
    verdict.heading("Goals");
    for isa in figures.isas() {
        let name = isa.as_str().to_uppercase();
        let stock = figures.get(isa, false, TICKS)?;
        let over = |figure| Ok::<f64, anyhow::Error>(figures.get(isa, true, figure)? - stock);
        verdict.at_most(
            &format!("{name}, ticks over stock, counting and timing"),
            over(TICKS)?,
            20.0,
        );
        verdict.at_most(
            &format!("{name}, ticks over stock, exit_stats=0"),
            over(TICKS_OFF)?,
            2.0,
        );
        for (what, figure) in ["exits", "cycles"].into_iter().zip(LEAF_TICKS) {
            verdict.at_most(
                &format!("{name}, ticks that each vCPU adds to the leaf of all {what}"),
                figures.get(isa, true, figure)?,
                20.0,
            );
        }
        let slab = |patched| figures.get(isa, patched, VCPU_SLAB);
        verdict.at_most(
            &format!("{name}, bytes more for a vCPU"),
            slab(true)? - slab(false)?,
            8192.0,
        );
        for (what, figure, limit) in [
            ("preads a vCPU and answer", READS, 1.0),
            ("exits while reading", READ_EXITS, 0.0),
            ("times a vCPU ran for a reading", READ_SWITCHES, 0.0),
        ] {
            verdict.at_most(
                &format!("{name}, {what}"),
                figures.get(isa, true, figure)?,
                limit,
            );
        }
    }
    Ok(())
}
