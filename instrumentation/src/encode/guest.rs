//! The table that the in-guest reader prints.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::SortBy;
use super::columns::{Columns, average, grouped, percent};
use crate::guest::GuestSnapshot;

/// What the leaves tell, as a table of the reasons that occurred, or of all.
pub fn guest_table(snapshot: &GuestSnapshot, sort: SortBy, all: bool) -> String {
    let vcpus = match snapshot.vcpus {
        1 => "1 vCPU".into(),
        n => format!("{n} vCPUs"),
    };
    let mut rows: Vec<_> = snapshot
        .reasons
        .iter()
        .filter(|row| all || row.exits > 0)
        .collect();
    match sort {
        SortBy::Exits => rows.sort_by_key(|row| core::cmp::Reverse(row.exits)),
        SortBy::Cycles => rows.sort_by_key(|row| core::cmp::Reverse(row.cycles)),
        SortBy::Number => {}
    }
    let header = [
        "#", "Reason", "Exits", "Exits%", "Cycles", "Time%", "Avg", "KVM",
    ];
    let mut table = Columns::new(header, 1..2);
    for row in rows {
        table.add_row([
            snapshot.isa.number(row.number),
            row.symbol.into(),
            grouped(row.exits),
            percent(row.exits, snapshot.exits),
            grouped(row.cycles),
            percent(row.cycles, snapshot.cycles),
            average(row.cycles, row.exits),
            if row.enabled {
                "enabled"
            } else {
                "not enabled"
            }
            .into(),
        ]);
    }
    table.add_row([
        String::new(),
        "total".into(),
        grouped(snapshot.exits),
        percent(snapshot.exits, snapshot.exits),
        grouped(snapshot.cycles),
        percent(snapshot.cycles, snapshot.cycles),
        average(snapshot.cycles, snapshot.exits),
        String::new(),
    ]);
    format!(
        "{} exits of this VM ({vcpus}, host TSC {} MHz), read with CPUID\n\n{}",
        snapshot.isa.as_str().to_uppercase(),
        snapshot.tsc_khz / 1000,
        table.text()
    )
}
