//! `ch-remote exit-stats record` and `report`

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::exit_stats::{ReadError, read};
use super::output::Failure;
use crate::client::{Client, Method};
use crate::recording::{Recorder, Recording};
use crate::types::{VmInfo, VmState};

/// What can be done with recordings.
#[derive(Clone, Debug, Subcommand)]
pub enum RecordingCommand {
    /// Record a VM's exits over time
    Record(RecordArgs),
    /// Draw a recording as one page of HTML
    Report(ReportArgs),
}

/// What to record, and where to.
#[derive(Args, Clone, Debug)]
pub struct RecordArgs {
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Milliseconds between samples
    #[arg(long, value_name = "MS", default_value_t = 100,
          value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub interval: u64,
    /// End well when the VM does
    #[arg(long)]
    pub until_shutdown: bool,
}

/// What to draw, and where to.
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// The recording
    #[arg(value_name = "FILE")]
    pub recording: PathBuf,
    /// Page to write; with a name in .svg, its first plot alone
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// Samples the VM until it ends, or the user ends the recording. A VM that is
/// not booted yet is waited for, so that a recording can hold a whole boot.
pub fn record(client: &Client, args: &RecordArgs) -> Result<(), Failure> {
    let cannot_write =
        |error: &dyn std::fmt::Display| format!("Cannot write {}: {error}", args.output.display());
    let interval = Duration::from_millis(args.interval);
    let vm = client.path().display().to_string();
    // Asked first: without a VMM no file is made.
    let mut reading = read(client, "");
    if let Err(ReadError::Client(error)) = reading {
        return Err(error.into());
    }
    let file = File::create(&args.output).map_err(|error| Failure::Line(cannot_write(&error)))?;
    let mut recorder = Recorder::new(file, &vm, args.interval)
        .map_err(|error| Failure::Line(cannot_write(&error)))?;
    let start = Instant::now();
    let mut next = start;
    let mut last_exits = None;
    loop {
        match reading {
            Ok(reading) => {
                let exits = reading.snapshot.totals.exits;
                let ms = start.elapsed().as_millis() as u64;
                recorder
                    .add(ms, reading.snapshot)
                    .map_err(|error| Failure::from_error(&error))?;
                // The figures of a machine that ended stay readable. One that
                // stands still has either ended or is paused.
                if last_exits == Some(exits) && has_ended(client) {
                    return end(args);
                }
                last_exits = Some(exits);
            }
            Err(ReadError::Refused(_)) if last_exits.is_none() => {}
            Err(ReadError::Client(_) | ReadError::Refused(_)) => return end(args),
            Err(error) => return Err(error.into()),
        }
        next = (next + interval).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        reading = read(client, "");
    }
}

fn has_ended(client: &Client) -> bool {
    let Ok(response) = client.request(Method::Get, "/api/v1/vm.info", None) else {
        return true;
    };
    let info = serde_json::from_str::<VmInfo>(response.body.as_deref().unwrap_or_default());
    !info.is_ok_and(|info| matches!(info.state, VmState::Running | VmState::Paused))
}

fn end(args: &RecordArgs) -> Result<(), Failure> {
    match args.until_shutdown {
        true => Ok(()),
        false => Err(Failure::Line(format!(
            "The VM ended; {} is complete up to there",
            args.output.display()
        ))),
    }
}

/// Draws a recording.
pub fn report(args: &ReportArgs) -> Result<(), Failure> {
    let about = |path: &PathBuf, error: &dyn std::error::Error| match Failure::from_error(error) {
        Failure::Line(line) => Failure::Line(format!("{}: {line}", path.display())),
        other => other,
    };
    let file = File::open(&args.recording).map_err(|error| {
        Failure::Line(format!("Cannot read {}: {error}", args.recording.display()))
    })?;
    let recording =
        Recording::read(BufReader::new(file)).map_err(|error| about(&args.recording, &error))?;
    let is_plot = args.output.extension().is_some_and(|end| end == "svg");
    let render = if is_plot {
        crate::report::render_svg
    } else {
        crate::report::render
    };
    let page = render(&recording).map_err(|error| about(&args.recording, &error))?;
    std::fs::write(&args.output, page)
        .map_err(|error| Failure::Line(format!("Cannot write {}: {error}", args.output.display())))
}
