//! Tables for people, in the manner of `perf kvm stat report`.

use comfy_table::{CellAlignment, Table, presets};

use super::RowOptions;
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
        text.push_str(&user_exit_table(&snapshot.vmm));
    }
    text
}

/// The reasons, one a row, and their sum.
pub fn reason_table(snapshot: &ExitSnapshot, options: &RowOptions) -> String {
    let totals = &snapshot.totals;
    let cycles = totals.cycles.unwrap_or(0);
    let mut table = plain([
        "#",
        "Reason",
        "Exits",
        "Exits%",
        "Cycles",
        "Time%",
        "Avg",
        "Asleep",
        "User space",
    ]);
    for row in options.rows(snapshot.reasons.as_deref().unwrap_or_default()) {
        let counters = &row.counters;
        table.add_row([
            row.label(snapshot.isa),
            row.symbol.clone(),
            grouped(counters.exits),
            percent(counters.exits, totals.exits),
            grouped(counters.cycles),
            percent(counters.cycles, cycles),
            average(counters.cycles, counters.exits),
            grouped(counters.blocked_cycles),
            grouped(counters.userspace_cycles),
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
    ]);
    align(table, 1)
}

/// Exits to user space by kind and by the device behind them.
pub fn user_exit_table(side: &VmmSide) -> String {
    let total: u64 = side.exits.iter().map(|row| row.exits).sum();
    let mut table = plain([
        "Kind",
        "Device",
        "Address",
        "Bytes",
        "Exits",
        "Exits%",
        "Microseconds",
    ]);
    for row in &side.exits {
        let line = |device: &str, address: &str, bytes: String, exits, nanoseconds: u64| {
            [
                row.kind.as_str().to_string(),
                device.into(),
                address.into(),
                bytes,
                grouped(exits),
                percent(exits, total),
                grouped(nanoseconds / 1000),
            ]
        };
        if row.devices.is_empty() {
            table.add_row(line("", "", String::new(), row.exits, row.nanoseconds));
        }
        for device in &row.devices {
            table.add_row(line(
                &device.id,
                device.address.as_deref().unwrap_or(""),
                device.size.to_string(),
                device.exits,
                device.nanoseconds,
            ));
        }
    }
    align(table, 2)
}

pub(super) fn plain<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

/// Figures go to the right, the `words` columns of words to the left, and no
/// line ends in spaces.
pub(super) fn align(mut table: Table, words: usize) -> String {
    let first_word = if words == 1 { 1 } else { 0 };
    for (index, column) in table.column_iter_mut().enumerate() {
        if !(first_word..first_word + words).contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        column.set_padding((0, 2));
    }
    table.lines().fold(String::new(), |mut text, line| {
        text.push_str(line.trim_end());
        text.push('\n');
        text
    })
}

/// 1234567 as 1,234,567.
pub(super) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".into(),
        whole => format!("{:.2}", part as f64 * 100.0 / whole as f64),
    }
}

pub(super) fn average(sum: u64, count: u64) -> String {
    sum.checked_div(count).map_or("-".into(), grouped)
}
