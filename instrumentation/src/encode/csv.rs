//! Comma-separated values, one line a reason and vCPU.

use std::fmt::Write;

use super::RowOptions;
use crate::snapshot::{ExitSnapshot, ReasonCounters};

/// The snapshot as CSV (RFC 4180, but with bare line feeds). The column `vcpu`
/// is `all` for the VM's sums, which come first.
///
/// Without figures by reason there is one line a vCPU, with an empty reason.
pub fn csv(snapshot: &ExitSnapshot, options: &RowOptions) -> String {
    let mut text = String::from(
        "vcpu,number,symbol,name,enabled,exits,cycles,blocked_cycles,userspace_cycles,preempted_cycles\n",
    );
    rows(
        &mut text,
        "all",
        snapshot.totals.exits,
        snapshot.reasons.as_deref(),
        options,
    );
    for vcpu in &snapshot.vcpus {
        rows(
            &mut text,
            &vcpu.id.to_string(),
            vcpu.totals.exits,
            vcpu.reasons.as_deref(),
            options,
        );
    }
    text
}

fn rows(
    text: &mut String,
    vcpu: &str,
    exits: u64,
    reasons: Option<&[ReasonCounters]>,
    options: &RowOptions,
) {
    let Some(reasons) = reasons else {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{vcpu},,,,,{exits},,,,");
        return;
    };
    for row in options.rows(reasons) {
        let number = row.number.map(|number| number.to_string());
        let counters = &row.counters;
        let _ = writeln!(
            text,
            "{vcpu},{},{},{},{},{},{},{},{},{}",
            number.as_deref().unwrap_or(""),
            row.symbol,
            quoted(&row.name),
            row.enabled,
            counters.exits,
            counters.cycles,
            counters.blocked_cycles,
            counters.userspace_cycles,
            counters.preempted_cycles
        );
    }
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.into()
    }
}
