//! `ch-remote exit-stats --watch`: the live view on a terminal; elsewhere lines,
//! one an interval.

use std::time::{Duration, Instant};

use instrumentation::encode::notes;
use instrumentation::snapshot::{DeltaError, ExitSnapshot, Query};

use super::exit_stats::{Format, ReadError, Render, read};
use super::output::{Failure, print};
use crate::client::Client;

/// Reasons named in a line.
const TOP: usize = 5;

/// Shows the live view until the user has seen enough.
pub fn on_screen(client: &Client, query: String, interval: Duration) -> Result<(), Failure> {
    let vm = client.path().display().to_string();
    let client = client.clone();
    crate::watch::run(&vm, interval, move || {
        read(&client, &query)
            .map(|reading| reading.snapshot)
            .map_err(|error| error.to_string())
    })
    .map_err(|error| Failure::Line(format!("Cannot use the terminal: {error}")))
}

/// Prints what happened in each interval until the VMM or the reader is gone. A VM
/// that does not run, or no longer, is waited for.
pub fn as_lines(
    client: &Client,
    narrow: &Query,
    interval: Duration,
    render: &Render<'_>,
) -> Result<(), Failure> {
    let start = Instant::now();
    let mut next = start;
    let mut headed = false;
    let mut said = None;
    let mut say = |what: Option<&'static str>| {
        if let (Some(what), true) = (what, said != what) {
            eprintln!("{what}");
        }
        said = what;
    };
    let mut last: Option<(ExitSnapshot, Instant)> = None;
    loop {
        // Against a fixed schedule, so that the work between does not add up.
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next = (next + interval).max(Instant::now());
        let now = Instant::now();
        let current = match read(client, "") {
            Ok(reading) if reading.snapshot.ended => {
                say(Some("The VM has ended: waiting for its next boot"));
                last = None;
                continue;
            }
            Ok(reading) => reading.snapshot,
            Err(error) if error.is_not_booted() => {
                say(Some("The VM is not running: waiting for its boot"));
                last = None;
                continue;
            }
            Err(ReadError::Client(error)) if error.is_timeout() => {
                say(Some("The VMM does not answer: waiting for it"));
                continue;
            }
            // The VMM ended, which is how a watch ends.
            Err(ReadError::Client(_)) => {
                eprintln!("The VMM is gone.");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        say(None);
        let Some((before, before_at)) = last.replace((current.clone(), now)) else {
            continue;
        };
        let delta = match current.since(&before) {
            Ok(delta) => delta,
            Err(DeltaError::Switched) => {
                eprintln!("Counting was switched on or off: rates begin anew.");
                continue;
            }
            Err(_) => {
                eprintln!("The VM was booted again: counting begins anew.");
                continue;
            }
        };
        let delta = delta
            .narrow(narrow)
            .map_err(|error| Failure::from_error(&error))?;
        let seconds = (now - before_at).as_secs_f64();
        let text = match render.format() {
            Format::Table => line((now - start).as_secs_f64(), seconds, &delta, render),
            _ => render.snapshot(&delta)?,
        };
        // One heading is enough for all rows that follow.
        let heading = match render.format() {
            Format::Csv if headed => text.find('\n').map_or(0, |end| end + 1),
            _ => 0,
        };
        print(&text[heading..])?;
        headed = true;
    }
}

/// `   12.0s   3456 exits/s  HLT 2000 (57.9%)  …`
fn line(at: f64, seconds: f64, delta: &ExitSnapshot, render: &Render<'_>) -> String {
    let rate = |exits: u64| exits as f64 / seconds.max(f64::MIN_POSITIVE);
    let total = delta.totals.exits;
    let mut text = format!("{at:8.1}s {:>10.0} exits/s", rate(total));
    match (&delta.reasons, &delta.unavailable) {
        (Some(reasons), _) => {
            for row in render.rows().rows(reasons).iter().take(TOP) {
                let share = match total {
                    0 => 0.0,
                    total => row.counters.exits as f64 * 100.0 / total as f64,
                };
                text.push_str(&format!(
                    "  {} {:.0} ({share:.1}%)",
                    row.symbol,
                    rate(row.counters.exits)
                ));
            }
        }
        (None, Some(why)) => text.push_str(&format!("  ({why})")),
        (None, None) => {}
    }
    for note in notes(delta) {
        text.push_str(&format!("  ({note})"));
    }
    text.push('\n');
    text
}
