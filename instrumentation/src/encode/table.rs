//! Tables for people, in the manner of `perf kvm stat report`.

use super::RowOptions;
use super::columns::{Columns, grouped, numbers, percent, rate, words};
use super::time::TimeUnit;
use crate::snapshot::{ExitSnapshot, Latency, ReasonCounters, ReasonLatency, VmmSide};

/// The whole report: a heading, the reasons, and what reached user space.
pub fn table(snapshot: &ExitSnapshot, options: &RowOptions) -> String {
    let isa = snapshot
        .isa
        .map_or("KVM".into(), |isa| isa.as_str().to_uppercase());
    let vcpus = match &snapshot.vcpus[..] {
        [vcpu] => format!("vCPU {}", vcpu.id),
        all => format!("{} vCPUs", all.len()),
    };
    let period = match snapshot.duration_us {
        Some(us) => format!("in {:.3} s", us as f64 / 1e6),
        None => format!("since {}", snapshot.since),
    };
    let mut text = format!("{isa} exits of {vcpus} {period}");
    match &snapshot.unavailable {
        None => text.push('\n'),
        Some(why) => text.push_str(&format!(
            ": {}\nNo exits by reason: {why}\n",
            grouped(snapshot.totals.exits)
        )),
    }
    for note in notes(snapshot) {
        text.push_str(&format!("{note}\n"));
    }
    if snapshot.unavailable.is_none() {
        text.push('\n');
        text.push_str(&reason_table(snapshot, options));
    }
    if let Some(latency) = &snapshot.latency {
        text.push_str("\nTime of single exits in the kernel, to a power of two ticks\n");
        if !latency.on {
            text.push_str("Recording is off: these are of the time when it was on\n");
        }
        text.push('\n');
        text.push_str(&latency_table(latency));
    }
    if !snapshot.vmm.exits.is_empty() {
        text.push_str("\nExits that reached user space\n\n");
        text.push_str(&user_exit_table(&snapshot.vmm, options.all));
    }
    text
}

/// What a reader has to know besides: that counters are not current or not whole.
pub fn notes(snapshot: &ExitSnapshot) -> Vec<String> {
    let mut notes = Vec::new();
    if snapshot.ended {
        notes.push("The VM has ended: these are its last counters.".into());
    }
    let totals = &snapshot.totals;
    // In a difference of two readings, what runs in between blurs the number.
    let blur = match snapshot.duration_us {
        Some(_) => totals.exits / 100,
        None => 0,
    };
    if totals.uncounted_exits > blur {
        notes.push(format!(
            "At least {} more exits were not counted by reason: counting was off.",
            grouped(totals.uncounted_exits)
        ));
    }
    notes
}

/// The reasons, one a row, and their sum. A difference has rates too.
pub fn reason_table(snapshot: &ExitSnapshot, options: &RowOptions) -> String {
    let totals = &snapshot.totals;
    let cycles = totals.cycles.unwrap_or(0);
    let blocked = totals.blocked_cycles.unwrap_or(0);
    let userspace = totals.userspace_cycles.unwrap_or(0);
    let preempted = totals.preempted_cycles.unwrap_or(0);
    let rows = options.rows(snapshot.reasons.as_deref().unwrap_or_default());
    let average = |row: &&ReasonCounters| row.counters.cycles.checked_div(row.counters.exits);
    let unit = |most| TimeUnit::for_column(most, snapshot.tsc_khz, options.ticks);
    let in_kernel = unit(cycles);
    let on_average = unit(rows.iter().filter_map(average).max().unwrap_or(0));
    let asleep = unit(blocked);
    let in_user_space = unit(userspace);
    let while_preempted = unit(preempted);
    let mut columns = vec![numbers("#"), words("Reason"), numbers("Exits")];
    columns.extend(snapshot.duration_us.map(|_| numbers("Exits/s")));
    columns.extend([
        numbers("Exits%"),
        numbers(&in_kernel.heading("Kernel")),
        numbers("Kernel%"),
        numbers(&on_average.heading("Avg")),
    ]);
    // Bounds, where there are histograms.
    let latency = snapshot.latency.iter().flat_map(|latency| &latency.reasons);
    let shortest = unit(
        latency
            .clone()
            .map(ReasonLatency::min_ticks)
            .max()
            .unwrap_or(0),
    );
    let longest = unit(
        latency
            .filter_map(ReasonLatency::max_ticks)
            .max()
            .unwrap_or(0),
    );
    if snapshot.latency.is_some() {
        columns.push(numbers(&shortest.heading("Min")));
        columns.push(numbers(&longest.heading("Max")));
    }
    columns.extend([
        numbers(&asleep.heading("Asleep")),
        numbers(&in_user_space.heading("User space")),
        numbers(&while_preempted.heading("Preempted")),
    ]);
    let mut table = Columns::new(columns);
    let bounds = |number: Option<u32>| {
        let latency = snapshot.latency.as_ref()?;
        let row = latency.reasons.iter().find(|row| row.number == number);
        let longest = row
            .and_then(ReasonLatency::max_ticks)
            .map(|max| longest.cell(max));
        Some([
            row.map_or("-".into(), |row| shortest.cell(row.min_ticks())),
            longest.unwrap_or("-".into()),
        ])
    };
    let mut line = |label: String,
                    name: &str,
                    exits,
                    [kernel, blocked, userspace, preempted]: [u64; 4],
                    bounds: Option<[String; 2]>| {
        let mut cells = vec![label, name.into(), grouped(exits)];
        cells.extend(snapshot.duration_us.map(|us| rate(exits, us)));
        cells.extend([
            percent(exits, totals.exits),
            in_kernel.cell(kernel),
            percent(kernel, cycles),
            on_average.average(kernel, exits),
        ]);
        cells.extend(bounds.into_iter().flatten());
        cells.extend([
            asleep.cell(blocked),
            in_user_space.cell(userspace),
            while_preempted.cell(preempted),
        ]);
        table.add_row(cells);
    };
    for row in rows {
        let counters = &row.counters;
        line(
            row.label(snapshot.isa),
            &row.symbol,
            counters.exits,
            [
                counters.cycles,
                counters.blocked_cycles,
                counters.userspace_cycles,
                counters.preempted_cycles,
            ],
            bounds(row.number),
        );
    }
    line(
        String::new(),
        "total",
        totals.exits,
        [cycles, blocked, userspace, preempted],
        snapshot.latency.as_ref().map(|_| Default::default()),
    );
    table.text()
}

/// Histograms of how long exits took, one a row: percentiles, and the exits below
/// each bound.
pub fn latency_table(latency: &Latency) -> String {
    let unit = |most: Option<u64>| TimeUnit::for_column(most.unwrap_or(0), 1_000_000, false);
    let rows = &latency.reasons;
    let longest = unit(rows.iter().filter_map(|row| row.max_ns).max());
    let mut bounds: Vec<_> = rows
        .iter()
        .flat_map(|row| &row.buckets)
        .map(|bucket| (bucket.below_ticks.unwrap_or(u64::MAX), bucket.below_ns))
        .collect();
    bounds.sort_unstable();
    bounds.dedup();
    let mut columns = vec![
        words("Reason"),
        numbers("Exits"),
        numbers(&longest.heading("50% below")),
        numbers(&longest.heading("99% below")),
    ];
    columns.extend(bounds.iter().map(|(_, below)| match below {
        Some(ns) => numbers(&format!(
            "<{}",
            unit(Some(*ns)).with_name(*ns).replace(' ', "")
        )),
        None => numbers("more"),
    }));
    let mut table = Columns::new(columns);
    for row in rows {
        let bound = |ns: Option<u64>| ns.map_or("-".into(), |ns| longest.cell(ns));
        let mut cells = vec![
            row.symbol.clone(),
            grouped(row.exits()),
            bound(row.percentile(50)),
            bound(row.percentile(99)),
        ];
        cells.extend(bounds.iter().map(|(_, below)| {
            let bucket = row.buckets.iter().find(|bucket| bucket.below_ns == *below);
            bucket.map_or(String::new(), |bucket| grouped(bucket.exits))
        }));
        table.add_row(cells);
    }
    table.text()
}

/// Rows of the exits to user space that are shown unless all are wanted.
const MOST_ROWS: usize = 20;

/// Exits to user space by kind and by the register behind them, most exits
/// first; all rows or the first twenty.
pub fn user_exit_table(side: &VmmSide, all: bool) -> String {
    let total: u64 = side.exits.iter().map(|row| row.exits).sum();
    let most = side.exits.iter().map(|row| row.nanoseconds).max();
    // A clock of a GHz ticks in nanoseconds.
    let unit = TimeUnit::for_column(most.unwrap_or(0), 1_000_000, false);
    let mut lines = Vec::new();
    for row in &side.exits {
        let line = |device: &str, address: &str, bytes: String, exits, nanoseconds: u64| {
            let cells = vec![
                row.kind.as_str().to_string(),
                device.into(),
                address.into(),
                bytes,
                grouped(exits),
                percent(exits, total),
                unit.cell(nanoseconds),
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
    let mut table = Columns::new(vec![
        words("Kind"),
        words("Device"),
        numbers("Address"),
        numbers("Bytes"),
        numbers("Exits"),
        numbers("Exits%"),
        numbers(&unit.heading("Time")),
    ]);
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
