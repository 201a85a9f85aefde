//! Tables for people, in the manner of `perf kvm stat report`.

use super::RowOptions;
use super::columns::{Columns, average, grouped, percent};
use crate::snapshot::{ExitSnapshot, VmmSide};

/// The whole report: a heading, the reasons, and what reached user space.
pub fn table(snapshot: &ExitSnapshot, options: &RowOptions) -> String {
    let isa = snapshot
        .isa
        .map_or("KVM".into(), |isa| isa.as_str().to_uppercase());
    let vcpus = match &snapshot.vcpus[..] {
        [vcpu] => format!("vCPU {}", vcpu.id),
        all => format!("{} vCPUs", all.len()),
    };
    let mut text = format!("{isa} exits of {vcpus} since {}", snapshot.since);
    match &snapshot.unavailable {
        None => {
            text.push_str("\n\n");
            text.push_str(&reason_table(snapshot, options));
        }
        Some(why) => {
            text.push_str(&format!(
                ": {}\nNo figures by reason: {why}\n",
                grouped(snapshot.totals.exits)
            ));
        }
    }
    if !snapshot.vmm.exits.is_empty() {
        text.push_str("\nExits that reached user space\n\n");
        text.push_str(&user_exit_table(&snapshot.vmm, options.all));
    }
    text
}

/// The reasons, one a row, and their sum.
pub fn reason_table(snapshot: &ExitSnapshot, options: &RowOptions) -> String {
    let totals = &snapshot.totals;
    let cycles = totals.cycles.unwrap_or(0);
    let header = [
        "#",
        "Reason",
        "Exits",
        "Exits%",
        "Cycles",
        "Time%",
        "Avg",
        "Asleep",
        "User space",
        "Preempted",
    ];
    let mut table = Columns::new(header, 1..2);
    for row in options.rows(snapshot.reasons.as_deref().unwrap_or_default()) {
        let counters = &row.counters;
        table.add_row([
            row.label(snapshot.isa),
            row.symbol.to_string(),
            grouped(counters.exits),
            percent(counters.exits, totals.exits),
            grouped(counters.cycles),
            percent(counters.cycles, cycles),
            average(counters.cycles, counters.exits),
            grouped(counters.blocked_cycles),
            grouped(counters.userspace_cycles),
            grouped(counters.preempted_cycles),
        ]);
    }
    table.add_row([
        String::new(),
        "total".into(),
        grouped(totals.exits),
        percent(totals.exits, totals.exits),
        grouped(cycles),
        percent(cycles, cycles),
        average(cycles, totals.exits),
        grouped(totals.blocked_cycles.unwrap_or(0)),
        grouped(totals.userspace_cycles.unwrap_or(0)),
        grouped(totals.preempted_cycles.unwrap_or(0)),
    ]);
    table.text()
}

/// Rows of the exits to user space that are shown unless all are wanted.
const MOST_ROWS: usize = 20;

/// Exits to user space by kind and by the register behind them, most exits
/// first; all rows or the first twenty.
pub fn user_exit_table(side: &VmmSide, all: bool) -> String {
    let total: u64 = side.exits.iter().map(|row| row.exits).sum();
    let header = [
        "Kind",
        "Device",
        "Address",
        "Bytes",
        "Exits",
        "Exits%",
        "Microseconds",
    ];
    let mut lines = Vec::new();
    for row in &side.exits {
        let line = |device: &str, address: &str, bytes: String, exits, nanoseconds: u64| {
            let cells = [
                row.kind.as_str().to_string(),
                device.into(),
                address.into(),
                bytes,
                grouped(exits),
                percent(exits, total),
                grouped(nanoseconds / 1000),
            ];
            (exits, cells)
        };
        if row.devices.is_empty() {
            lines.push(line("", "", String::new(), row.exits, row.nanoseconds));
        }
        for device in &row.devices {
            let further = device
                .range
                .as_ref()
                .map_or("further".into(), |range| format!("{range}+"));
            lines.push(line(
                &device.id,
                device.address.as_ref().unwrap_or(&further),
                device.size.to_string(),
                device.exits,
                device.nanoseconds,
            ));
        }
    }
    lines.sort_by_key(|(exits, _)| std::cmp::Reverse(*exits));
    let shown = if all {
        lines.len()
    } else {
        lines.len().min(MOST_ROWS)
    };
    let rest = lines.split_off(shown);
    let mut table = Columns::new(header, 0..2);
    for (_, cells) in lines {
        table.add_row(cells);
    }
    let mut text = table.text();
    if !rest.is_empty() {
        let exits = rest.iter().map(|(exits, _)| exits).sum();
        text.push_str(&format!(
            "{} rows more with {} exits; --all shows them\n",
            rest.len(),
            grouped(exits)
        ));
    }
    text
}
