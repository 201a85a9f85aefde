//! What 64 clients see of a busy machine that they ask ten times a second each,
//! and what it feels of them.

use anyhow::Result;

use super::{Equipment, Figures, Section, Verdict, nothing_here, number, words};
use crate::host::Isa;

/// On the host whose clock counts instructions: there a time is the work done,
/// whatever else this machine does.
pub(super) const SECTION: Section = Section {
    name: "load",
    wants: |place| place.patched && place.isa == Isa::Svm,
    equipment: Equipment::None,
    here: nothing_here,
    judge,
};

/// Answers a second.
pub const ANSWERS: &str = "load_answers";
/// Milliseconds within which half of the answers came.
pub const MEDIAN: &str = "load_median";
/// Milliseconds within which 99 of 100 came.
pub const P99: &str = "load_p99";
/// Milliseconds to the slowest.
pub const WORST: &str = "load_worst";
/// Percent by which the guest's exits a second of its vCPUs' own time changed,
/// while clients asked for something that has nothing to do with it.
pub const RATE_PINGED: &str = "load_rate_pinged";
/// The same while they asked for the figures.
pub const RATE_ASKED: &str = "load_rate_asked";
/// Times that a vCPU waited, or left the guest for a signal.
pub const HELD_UP: &str = "load_held_up";
/// Times that a thread of the VMM waited for another or called it.
pub const FUTEXES: &str = "load_futexes";
/// Exits of a reason that neither guest nor host explain.
pub const STRANGE: &str = "load_strange_exits";

fn judge(figures: &Figures, verdict: &mut Verdict) -> Result<()> {
    if !figures.isas().contains(&Isa::Svm) {
        return Ok(());
    }
    let get = |name| figures.get(Isa::Svm, true, name);
    verdict.heading("64 clients, 10 questions a second each, at a busy machine with 8 vCPUs");
    let mut rows = vec![words(&["SVM", ""])];
    for (what, figure) in [
        ("answers a second", ANSWERS),
        ("half of them within, ms", MEDIAN),
        ("99 of 100 within, ms", P99),
        ("the slowest, ms", WORST),
        (
            "guest's exits a second of its own time, asked: change in %",
            RATE_ASKED,
        ),
        ("the same, VMM pinged in place of asked", RATE_PINGED),
    ] {
        rows.push(vec![what.to_owned(), number(get(figure)?)]);
    }
    verdict.table(&rows);
    verdict.heading("Goals");
    for (what, value, limit) in [
        ("ms within which 99 of 100 answers come", get(P99)?, 5.0),
        (
            "% by which the guest's exit rate changes",
            get(RATE_ASKED)?.abs(),
            1.0,
        ),
        ("times that a vCPU was held up", get(HELD_UP)?, 0.0),
        (
            "times that threads waited for each other",
            get(FUTEXES)?,
            0.0,
        ),
        ("exits that nobody explains", get(STRANGE)?, 0.0),
    ] {
        verdict.at_most(&format!("SVM, 64 clients, {what}"), value, limit);
    }
    Ok(())
}
