//! Draws a recording as one self-contained page: no script is loaded, no font,
//! nothing from any network.

mod page;
mod phases;
mod plot;
mod timeline;

pub use plot::PlotError;

use instrumentation::encode::grouped;
use instrumentation::snapshot::{ExitSnapshot, Latency};

use crate::recording::Recording;
use page::Page;
use phases::Phase;
use timeline::Timeline;

/// Why a recording has no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// There is nothing to draw.
    #[error("The recording has no samples")]
    Empty,
    /// The recorded host could not tell reasons apart.
    #[error("The recording has no figures by reason: {0}")]
    NoReasons(String),
    /// Drawing failed.
    #[error(transparent)]
    Plot(#[from] PlotError),
}

/// The page, as HTML.
pub fn render(recording: &Recording) -> Result<String, ReportError> {
    let last = check(recording)?;
    let timeline = Timeline::new(recording);
    let mut page = Page::new(&format!("VM exits of {}", recording.header.vm));
    summary(&mut page, &timeline, last);
    let phases = phases::phases(&timeline);
    over_time(&mut page, &timeline, &phases)?;
    bursts(&mut page, &timeline, &phases);
    ranking(&mut page, &timeline)?;
    time_split(&mut page, &timeline)?;
    latency(&mut page, recording);
    devices(&mut page, recording)?;
    Ok(page.finish())
}

/// The first plot of the page alone, exits per second by reason, as SVG.
pub fn render_svg(recording: &Recording) -> Result<String, ReportError> {
    check(recording)?;
    let timeline = Timeline::new(recording);
    let series = exit_rates(&timeline);
    let svg = plot::stacked(&timeline, &series, "exits per second", &[])?;
    let names: Vec<_> = series.iter().map(|row| row.0).collect();
    Ok(plot::with_legend(&svg, &names))
}

/// The last sample of a recording that a report can be drawn of.
fn check(recording: &Recording) -> Result<&ExitSnapshot, ReportError> {
    let last = &recording.samples.last().ok_or(ReportError::Empty)?.delta;
    if last.reasons.is_none() {
        let why = last.unavailable.clone().unwrap_or_default();
        return Err(ReportError::NoReasons(why));
    }
    Ok(last)
}

fn summary(page: &mut Page, timeline: &Timeline, last: &ExitSnapshot) {
    let exits: u64 = timeline.exits().iter().sum();
    let seconds = timeline.end(timeline.buckets - 1);
    let isa = last.isa.map_or("", |isa| isa.as_str()).to_uppercase();
    page.facts(&[
        ("Exits", grouped(exits)),
        ("Seconds", format!("{seconds:.2}")),
        ("Exits a second", plot::short(exits as f64 / seconds)),
        ("vCPUs", last.vcpus.len().to_string()),
        ("Instruction set", isa),
        ("Host TSC", format!("{} MHz", last.tsc_khz / 1000)),
    ]);
    if let Some(manual) = &last.manual {
        page.paragraph(&format!("Reasons as in {manual}."));
    }
}

/// Exits per second of the reasons with a colour of their own, and of the rest.
fn exit_rates(timeline: &Timeline) -> Vec<plot::Series<'_>> {
    let rate = |exits: &[u64]| -> Vec<f64> {
        exits
            .iter()
            .map(|&count| count as f64 / timeline.bucket_seconds)
            .collect()
    };
    let own = timeline.reasons.len().min(plot::COLOURS - 1);
    let mut series: Vec<plot::Series> = timeline.reasons[..own]
        .iter()
        .map(|row| (row.symbol.as_str(), rate(&row.exits)))
        .collect();
    if timeline.reasons.len() > own {
        let mut rest = vec![0; timeline.buckets];
        for row in &timeline.reasons[own..] {
            for (sum, count) in rest.iter_mut().zip(&row.exits) {
                *sum += count;
            }
        }
        series.push(("all others", rate(&rest)));
    }
    series
}

fn over_time(page: &mut Page, timeline: &Timeline, phases: &[Phase]) -> Result<(), ReportError> {
    let series = exit_rates(timeline);
    let bursts: Vec<_> = phases
        .iter()
        .filter(|phase| phase.burst)
        .map(|phase| span(timeline, phase))
        .collect();
    page.heading("Exits per second, by reason");
    page.svg(
        &plot::stacked(timeline, &series, "exits per second", &bursts)?,
        "Exits per second over time, stacked by reason; bursts are shaded",
    );
    page.legend(&series.iter().map(|row| row.0).collect::<Vec<_>>());
    page.data("seconds", timeline, &series);
    Ok(())
}

/// Where a phase starts and ends, in seconds.
fn span(timeline: &Timeline, phase: &Phase) -> (f64, f64) {
    let start = timeline.bucket_seconds * phase.first as f64;
    (start, timeline.end(phase.end - 1))
}

fn bursts(page: &mut Page, timeline: &Timeline, phases: &[Phase]) {
    let bursts = phases.iter().filter(|phase| phase.burst).count();
    page.heading("Phases");
    let found = match bursts {
        0 => "There is none.".into(),
        1 => "There is one burst, shaded above.".into(),
        n => format!("There are {n} bursts, shaded above."),
    };
    page.paragraph(&format!(
        "A burst is a stretch whose rate is more than twice the recording's mean. {found}"
    ));
    let rows = phases.iter().map(|phase| {
        let (start, end) = span(timeline, phase);
        let top: Vec<String> = phase
            .top
            .iter()
            .map(|(symbol, count)| format!("{symbol} {}", grouped(*count)))
            .collect();
        vec![
            if phase.burst { "burst" } else { "calm" }.into(),
            format!("{start:.2}"),
            format!("{end:.2}"),
            phase.exits.to_string(),
            plot::short(phase.exits as f64 / (end - start)),
            top.join(", "),
        ]
    });
    page.table(
        &["Phase", "From (s)", "To (s)", "Exits", "Exits/s", "Mostly"],
        rows,
    );
}

fn ranking(page: &mut Page, timeline: &Timeline) -> Result<(), ReportError> {
    let exits: u64 = timeline.exits().iter().sum();
    let kernel: f64 = timeline.reasons.iter().map(|row| row.seconds[0]).sum();
    let label = |row: &timeline::ReasonSeries| format!("{} {}", row.symbol, row.label);
    let by_count: Vec<_> = timeline
        .reasons
        .iter()
        .map(|row| {
            let share = row.total_exits as f64 * 100.0 / exits.max(1) as f64;
            (
                label(row),
                row.total_exits as f64,
                format!("{} ({share:.1} %)", grouped(row.total_exits)),
            )
        })
        .collect();
    let mut by_time: Vec<_> = timeline
        .reasons
        .iter()
        .map(|row| {
            let seconds = row.seconds[0];
            let share = seconds * 100.0 / kernel.max(f64::MIN_POSITIVE);
            (
                label(row),
                seconds,
                match seconds {
                    1.0.. => format!("{seconds:.3} s ({share:.1} %)"),
                    _ => format!("{:.3} ms ({share:.1} %)", seconds * 1000.0),
                },
            )
        })
        .collect();
    by_time.sort_by(|a, b| b.1.total_cmp(&a.1));
    page.heading("Reasons by number of exits");
    page.svg(&plot::bars(&by_count)?, "Exits of each reason");
    page.values("reason,exits", &by_count);
    page.heading("Reasons by time in the kernel");
    page.svg(&plot::bars(&by_time)?, "Kernel time of each reason");
    let rows = timeline.reasons.iter().map(|row| {
        let ms = |index: usize| format!("{:.3}", row.seconds[index] * 1000.0);
        vec![
            row.label.clone(),
            row.symbol.clone(),
            row.name.clone(),
            row.total_exits.to_string(),
            ms(0),
            ms(1),
            ms(2),
        ]
    });
    page.table_to_copy(
        &[
            "#",
            "Symbol",
            "Name",
            "Exits",
            "Kernel (ms)",
            "Asleep (ms)",
            "User space (ms)",
        ],
        rows,
    );
    Ok(())
}

fn time_split(page: &mut Page, timeline: &Timeline) -> Result<(), ReportError> {
    let share = |seconds: &[f64]| -> Vec<f64> {
        seconds
            .iter()
            .map(|seconds| seconds / timeline.bucket_seconds)
            .collect()
    };
    let split = &timeline.split;
    let series = [
        ("guest", share(&split.guest)),
        ("KVM", share(&split.kernel)),
        ("user space", share(&split.userspace)),
        ("asleep", share(&split.asleep)),
        ("preempted", share(&split.preempted)),
    ];
    page.heading("Where the vCPUs' time went");
    page.svg(
        &plot::stacked(timeline, &series, "vCPUs", &[])?,
        "vCPU time over time: guest, KVM, user space, asleep, preempted",
    );
    page.legend(&series.each_ref().map(|row| row.0));
    page.data("seconds", timeline, &series);
    Ok(())
}

/// How long single exits took, of VMs that keep histograms.
fn latency(page: &mut Page, recording: &Recording) {
    let mut sum = Latency::default();
    for sample in &recording.samples {
        if let Some(latency) = &sample.delta.latency {
            sum.add(latency, sample.delta.tsc_khz);
        }
    }
    if sum.reasons.is_empty() {
        return;
    }
    sum.reasons
        .sort_by_key(|row| std::cmp::Reverse(row.exits()));
    page.heading("Time of single exits in the kernel");
    page.paragraph("Bounds, to a power of two TSC ticks.");
    let us = |ns: Option<u64>| ns.map_or("-".into(), |ns| format!("{:.3}", ns as f64 / 1000.0));
    page.table_to_copy(
        &[
            "Symbol",
            "Exits",
            "Shortest at least (µs)",
            "Half below (µs)",
            "99 % below (µs)",
            "Longest below (µs)",
        ],
        sum.reasons.iter().map(|row| {
            vec![
                row.symbol.clone(),
                row.exits().to_string(),
                us(Some(row.min_ns)),
                us(row.percentile(50)),
                us(row.percentile(99)),
                us(row.max_ns),
            ]
        }),
    );
}

fn devices(page: &mut Page, recording: &Recording) -> Result<(), ReportError> {
    let mut sums = std::collections::BTreeMap::new();
    for row in recording
        .samples
        .iter()
        .flat_map(|sample| &sample.delta.vmm.exits)
    {
        for device in &row.devices {
            let key = (
                device.id.as_str(),
                device.address.as_deref().unwrap_or("-"),
                row.kind.as_str(),
                device.size,
            );
            let (exits, nanoseconds) = sums.entry(key).or_insert((0u64, 0u64));
            *exits += device.exits;
            *nanoseconds += device.nanoseconds;
        }
    }
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by_key(|(_, (exits, _))| std::cmp::Reverse(*exits));
    page.heading("Devices behind the I/O");
    if rows.is_empty() {
        page.paragraph("No access to a device reached user space.");
        return Ok(());
    }
    let bars: Vec<_> = rows
        .iter()
        .take(16)
        .map(|((id, address, kind, _), (exits, _))| {
            (
                format!("{id} {address} {kind}"),
                *exits as f64,
                grouped(*exits),
            )
        })
        .collect();
    page.svg(&plot::bars(&bars)?, "Exits of each device access");
    page.table_to_copy(
        &[
            "Device",
            "Address",
            "Access",
            "Bytes",
            "Exits",
            "Microseconds",
        ],
        rows.iter()
            .map(|((id, address, kind, size), (exits, nanoseconds))| {
                vec![
                    id.to_string(),
                    address.to_string(),
                    kind.to_string(),
                    size.to_string(),
                    exits.to_string(),
                    (nanoseconds / 1000).to_string(),
                ]
            }),
    );
    Ok(())
}

#[cfg(test)]
mod tests;
