//! `ch-remote exit-stats record` and `report`

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use instrumentation::snapshot::DeltaError;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::exit_stats::{ReadError, read};
use super::output::Failure;
use crate::client::{Client, ClientError};
use crate::recording::{Recorder, Recording, RecordingError};

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
    /// Overwrite the file if it exists
    #[arg(long)]
    pub force: bool,
    /// Milliseconds between samples
    #[arg(long, value_name = "MS", default_value_t = 100,
          value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub interval: u64,
    /// Exit with status 0 when the VM ends or reboots
    #[arg(long)]
    pub until_shutdown: bool,
    /// Wait for the VMM too, if it does not run yet
    #[arg(long)]
    pub wait: bool,
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

/// How long a signal may wait.
const TICK: Duration = Duration::from_millis(50);
/// Between attempts at a VMM that is not there yet.
const RETRY: Duration = Duration::from_millis(20);

/// Why a recording ended.
enum End {
    /// The user ended it.
    Signal,
    /// The VM ended, rebooted or hangs, or counting was switched.
    Vm(&'static str),
}

/// Samples the VM until it ends, or the user ends the recording. A VM that is
/// not booted yet is waited for, so that a recording can hold a whole boot.
pub fn record(client: &Client, args: &RecordArgs) -> Result<(), Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::Line(format!("Cannot handle signals: {error}")))?;
    }
    let name = args.output.display();
    // Asked first: without a VMM no file is made.
    let mut reading = read(client, "");
    if args.wait && matches!(&reading, Err(ReadError::Client(error)) if is_absent(error)) {
        eprintln!("Waiting for a VMM at {}", client.path().display());
        while matches!(&reading, Err(ReadError::Client(error)) if is_absent(error)) {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(RETRY);
            reading = read(client, "");
        }
    }
    if let Err(ReadError::Client(error)) = reading {
        return Err(error.into());
    }
    let file = create(&args.output, args.force)?;
    let mut samples = 0u64;
    let vm = client.path().display().to_string();
    let mut recorder = Recorder::new(file, &vm, args.interval)
        .map_err(|error| cannot_write(&args.output, &error, samples))?;
    let interval = Duration::from_millis(args.interval);
    eprintln!(
        "Recording to {name}, a sample every {} ms; Ctrl-C ends it",
        args.interval
    );
    if matches!(reading, Err(ReadError::Refused(_))) {
        eprintln!("The VM is not running: waiting for its boot");
    }
    let start = Instant::now();
    let mut next = start;
    let end = loop {
        match reading {
            // What a VM that ended has left is not the one that is waited for.
            Ok(reading) if reading.snapshot.ended && samples == 0 => {}
            Ok(reading) => {
                let ended = reading.snapshot.ended;
                let ms = start.elapsed().as_millis() as u64;
                match recorder.add(ms, reading.snapshot) {
                    Ok(()) => samples += 1,
                    Err(RecordingError::Delta(DeltaError::Switched)) => {
                        break End::Vm("Counting was switched on or off");
                    }
                    Err(RecordingError::Delta(_)) => break End::Vm("The VM rebooted"),
                    Err(error) => return Err(cannot_write(&args.output, &error, samples)),
                }
                if ended {
                    break End::Vm("The VM ended");
                }
            }
            Err(ReadError::Refused(_)) if samples == 0 => {}
            Err(ReadError::Client(error)) if error.is_timeout() => {
                break End::Vm("The VMM does not answer");
            }
            Err(ReadError::Client(_) | ReadError::Refused(_)) => break End::Vm("The VM ended"),
            Err(error) => return Err(error.into()),
        }
        next = (next + interval).max(Instant::now());
        while Instant::now() < next && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(next.saturating_duration_since(Instant::now()).min(TICK));
        }
        if stop.load(Ordering::Relaxed) {
            break End::Signal;
        }
        reading = read(client, "");
    };
    let written = format!(
        "{name} has {samples} samples of {:.1} s",
        start.elapsed().as_secs_f64()
    );
    match end {
        End::Signal => eprintln!("Ended by a signal: {written}"),
        End::Vm(why) if args.until_shutdown => eprintln!("{why}: {written}"),
        End::Vm(why) => return Err(Failure::Line(format!("{why}: {written}"))),
    }
    Ok(())
}

/// Whether nobody listens at the socket yet.
fn is_absent(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { source, .. } => matches!(
            source.kind(),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused
        ),
        _ => false,
    }
}

fn create(path: &Path, force: bool) -> Result<File, Failure> {
    let file = match force {
        true => File::create(path),
        false => File::create_new(path),
    };
    file.map_err(|error| {
        let why = match error.kind() {
            ErrorKind::AlreadyExists => "it exists; --force overwrites it".into(),
            _ => error.to_string(),
        };
        Failure::Line(format!("Cannot write {}: {why}", path.display()))
    })
}

fn cannot_write(path: &Path, error: &RecordingError, samples: u64) -> Failure {
    let reason = std::error::Error::source(error).map_or(error.to_string(), |s| s.to_string());
    Failure::Line(format!(
        "Cannot write {}: {reason}; its first {samples} samples are whole",
        path.display()
    ))
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
    let cannot =
        |why: &str| Failure::Line(format!("Cannot write {}: {why}", args.output.display()));
    if is_same(&file, &args.output).map_err(|error| cannot(&error.to_string()))? {
        return Err(cannot("it is the recording itself"));
    }
    let recording =
        Recording::read(BufReader::new(file)).map_err(|error| about(&args.recording, &error))?;
    if is_recording(&args.output) {
        return Err(cannot("it is a recording"));
    }
    let is_plot = args.output.extension().is_some_and(|end| end == "svg");
    let render = if is_plot {
        crate::report::render_svg
    } else {
        crate::report::render
    };
    let page = render(&recording).map_err(|error| about(&args.recording, &error))?;
    fs::write(&args.output, page).map_err(|error| cannot(&error.to_string()))
}

/// Whether a path names an open file, by whatever name or link.
fn is_same(file: &File, path: &Path) -> io::Result<bool> {
    let other = match fs::metadata(path) {
        Ok(other) => other,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let own = file.metadata()?;
    Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
}

fn is_recording(path: &Path) -> bool {
    // Opening a device or a pipe could wait, and neither keeps anything.
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
        && File::open(path).is_ok_and(|file| Recording::begins(BufReader::new(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_never_overwritten_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        fs::write(&path, "precious").unwrap();
        let error = create(&path, false).unwrap_err().to_string();
        assert!(error.contains("it exists; --force"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        create(&path, true).unwrap();
    }

    #[test]
    fn a_report_does_not_destroy_a_recording_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("a.jsonl"), dir.path().join("b.jsonl"));
        for path in [&one, &two] {
            Recorder::new(File::create(path).unwrap(), "vm", 1).unwrap();
        }
        let link = dir.path().join("link.html");
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let before = fs::read(&one).unwrap();
        for output in [&one, &link, &two] {
            let args = ReportArgs {
                recording: one.clone(),
                output: output.clone(),
            };
            let error = report(&args).unwrap_err().to_string();
            assert!(error.contains("it is "), "{error}");
            assert_eq!(fs::read(output).unwrap(), before);
        }
    }

    #[test]
    fn a_full_disk_is_named_with_what_was_recorded() {
        // Nothing fits into this device, as on a disk that is full.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = Recorder::new(full, "vm", 1).unwrap_err();
        assert_eq!(
            cannot_write(Path::new("a"), &error, 7).to_string(),
            "Error: Cannot write a: No space left on device (os error 28); \
             its first 7 samples are whole\n"
        );
    }
}
