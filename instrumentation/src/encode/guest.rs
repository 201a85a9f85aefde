//! The table that the in-guest reader prints.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::SortBy;
use super::columns::{Columns, grouped, numbers, percent, rate, words};
use super::time::TimeUnit;
use crate::guest::GuestSnapshot;

/// Which rows the guest's table has, in which order, and the unit of its times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestRows {
    /// The order of rows.
    pub sort: SortBy,
    /// Whether to show reasons that never occurred.
    pub all: bool,
    /// Times in ticks of the host's TSC.
    pub ticks: bool,
}

/// What the leaves tell, as a table of the reasons that occurred, or of all. A
/// difference of two readings has rates too.
pub fn guest_table(snapshot: &GuestSnapshot, options: GuestRows) -> String {
    let vcpus = match snapshot.vcpus {
        1 => "1 vCPU".into(),
        n => format!("{n} vCPUs"),
    };
    let mut rows: Vec<_> = snapshot
        .reasons
        .iter()
        .filter(|row| options.all || row.exits > 0)
        .collect();
    match options.sort {
        SortBy::Exits => rows.sort_by_key(|row| core::cmp::Reverse(row.exits)),
        SortBy::Cycles => rows.sort_by_key(|row| core::cmp::Reverse(row.cycles)),
        SortBy::Number => {}
    }
    let unit = |most| TimeUnit::for_column(most, snapshot.tsc_khz, options.ticks);
    let averages = rows
        .iter()
        .filter_map(|row| row.cycles.checked_div(row.exits));
    let on_average = unit(averages.max().unwrap_or(0));
    let in_kernel = unit(snapshot.cycles);
    let mut columns = vec![numbers("#"), words("Reason"), numbers("Exits")];
    columns.extend(snapshot.duration_us.map(|_| numbers("Exits/s")));
    columns.extend([
        numbers("Exits%"),
        numbers(&in_kernel.heading("Kernel")),
        numbers("Kernel%"),
        numbers(&on_average.heading("Avg")),
        numbers("KVM"),
    ]);
    let mut table = Columns::new(columns);
    let mut line = |label: String, name: &str, exits, cycles, enabled: &str| {
        let mut cells = vec![label, name.into(), grouped(exits)];
        cells.extend(snapshot.duration_us.map(|us| rate(exits, us)));
        cells.extend([
            percent(exits, snapshot.exits),
            in_kernel.cell(cycles),
            percent(cycles, snapshot.cycles),
            on_average.average(cycles, exits),
            enabled.into(),
        ]);
        table.add_row(cells);
    };
    for row in rows {
        let enabled = if row.enabled {
            "enabled"
        } else {
            "not enabled"
        };
        let label = snapshot.isa.number(row.number);
        line(label, row.symbol, row.exits, row.cycles, enabled);
    }
    line(String::new(), "total", snapshot.exits, snapshot.cycles, "");
    let period = match snapshot.duration_us {
        Some(us) => format!("in {:.3} s", us as f64 / 1e6),
        None => "since boot".into(),
    };
    let own = match (snapshot.duration_us, snapshot.own_exits) {
        (Some(_), 1..) => format!(
            "{} of the CPUID exits are this program's own\n",
            snapshot.own_exits
        ),
        _ => String::new(),
    };
    format!(
        "{} exits of this VM {period} ({vcpus}, host TSC {} MHz), read with CPUID\n{own}\n{}",
        snapshot.isa.as_str().to_uppercase(),
        snapshot.tsc_khz / 1000,
        table.text()
    )
}
