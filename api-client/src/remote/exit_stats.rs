//! `ch-remote exit-stats`

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use instrumentation::encode::{RowOptions, SortBy, csv, notes, openmetrics, table};
use instrumentation::snapshot::{ExitSnapshot, Query};
use instrumentation::table::{ExitReason, Isa, ReasonStatus};
use instrumentation::user_exit::UserExitKind;

use super::output::{Failure, print};
use super::recording::RecordingCommand;
use super::watch;
use crate::client::{Client, ClientError, Method, Response};

/// Exits of a VM by reason.
#[derive(Args, Clone, Debug, Default)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ExitStatsArgs {
    /// Recordings, in place of the figures of the moment
    #[command(subcommand)]
    pub recording: Option<RecordingCommand>,
    /// Only this reason: its number, its Linux symbol or its name in the manual, or
    /// the beginning or a part of these that no other reason has
    #[arg(long, value_name = "N|NAME", allow_hyphen_values = true)]
    pub reason: Option<String>,
    /// Only this vCPU
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub vcpu: Option<String>,
    /// Order of the rows
    #[arg(long, value_enum, default_value_t)]
    pub sort: Sort,
    /// Also reasons that did not occur
    #[arg(long)]
    pub all: bool,
    /// Times in ticks of the host's TSC, not in seconds
    #[arg(long)]
    pub ticks: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Refresh continuously: a live view on a terminal, a line an interval elsewhere
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = parse_seconds)]
    pub watch: Option<Duration>,
    /// Print what happened since an earlier output in JSON
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    pub since: Option<PathBuf>,
}

/// Order of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Most exits first
    #[default]
    Exits,
    /// Most time in the kernel first
    #[value(alias = "cycles")]
    Time,
    /// By number
    Number,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// As the API answers
    Json,
    /// For spreadsheets
    Csv,
    /// For Prometheus
    Openmetrics,
}

pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.01..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected seconds from 0.01 to 86400".to_owned())
}

/// A snapshot, and the text it was read from.
pub struct Reading {
    /// The figures.
    pub snapshot: ExitSnapshot,
    text: String,
}

/// Why there is no reading.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The VMM does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It refuses.
    #[error("{}", refusal(.0))]
    Refused(Response),
    /// It answers something else.
    #[error("The answer is no exit statistics: is this another VMM?")]
    Form(#[source] serde_json::Error),
}

impl ReadError {
    /// Whether there is a VMM whose VM does not run yet.
    pub fn is_not_booted(&self) -> bool {
        match self {
            ReadError::Refused(response) => {
                let messages = response.messages();
                response.status == 404
                    && messages
                        .iter()
                        .any(|message| message == "No virtual machine has been booted")
            }
            _ => false,
        }
    }
}

/// The server's last word is the one that matters: the others only lead to it.
fn refusal(response: &Response) -> String {
    match response.messages().last() {
        // A VMM without the resource.
        None => format!("The VMM has no exit statistics ({})", response.status),
        Some(message) => message.clone(),
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Failure::from_error(&error)
    }
}

/// Reads the statistics. `query` is what follows the `?`.
pub fn read(client: &Client, query: &str) -> Result<Reading, ReadError> {
    let separator = if query.is_empty() { "" } else { "?" };
    let target = format!("/api/v1/vm.exit-stats{separator}{query}");
    let response = client.request(Method::Get, &target, None)?;
    if !response.is_success() {
        return Err(ReadError::Refused(response));
    }
    let text = response.body.unwrap_or_default();
    let snapshot = serde_json::from_str(&text).map_err(ReadError::Form)?;
    Ok(Reading { snapshot, text })
}

/// Shows figures as the arguments say.
pub fn run(client: &Client, args: &ExitStatsArgs) -> Result<(), Failure> {
    let reason = args
        .reason
        .as_deref()
        .map(|text| find_reason(client, text))
        .transpose()?;
    let query = query_text(reason.as_deref(), args.vcpu.as_deref());
    // Asked of the server first, whatever follows: it alone judges a query.
    let reading = match read(client, &query) {
        Err(error) if error.is_not_booted() && args.watch.is_some() => None,
        reading => Some(reading?),
    };
    let narrow = parsed_query(reason.as_deref(), args.vcpu.as_deref());
    let render = Render {
        name: client.path().display().to_string(),
        args,
        reason: narrow.reason,
    };
    if let Some(interval) = args.watch {
        let on_screen = args.format == Format::Table && std::io::stdout().is_terminal();
        return match on_screen {
            true => watch::on_screen(client, query, interval),
            false => watch::as_lines(client, &narrow, interval, &render),
        };
    }
    if let Some(path) = &args.since {
        let delta = since(client, path, &narrow)?;
        render.tell(&delta);
        return print(&render.snapshot(&delta)?);
    }
    let Some(reading) = reading else {
        return Ok(());
    };
    render.tell(&reading.snapshot);
    match args.format {
        // As it came, fields that this client does not know included.
        Format::Json => print(&format!("{}\n", reading.text)),
        _ => print(&render.snapshot(&reading.snapshot)?),
    }
}

fn since(client: &Client, path: &Path, narrow: &Query) -> Result<ExitSnapshot, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::Line(format!("Cannot read {}: {error}", path.display())))?;
    let earlier: ExitSnapshot = serde_json::from_str(&text).map_err(|error| {
        Failure::Line(format!(
            "{} is not an earlier output in JSON: {error}",
            path.display()
        ))
    })?;
    let later = read(client, "")?.snapshot;
    later
        .since(&earlier)
        .map_err(|error| Failure::from_error(&error))?
        .narrow(narrow)
        .map_err(|error| Failure::from_error(&error))
}

/// A reason as a number, however it was typed. What looks like a number is
/// left for the server to judge.
fn find_reason(client: &Client, text: &str) -> Result<String, Failure> {
    let looks_like_a_number =
        text.starts_with(|first: char| first.is_ascii_digit() || first == '-' || first == '+');
    if text.is_empty() || looks_like_a_number {
        return Ok(text.to_owned());
    }
    let isa = read(client, "")?.snapshot.isa;
    // A host that does not count exits does not say whose names apply either.
    let candidates = match isa {
        Some(isa) => vec![isa],
        None => vec![Isa::Vmx, Isa::Svm],
    };
    let mut errors = Vec::new();
    for isa in candidates {
        match isa.table().find(text) {
            Ok(ExitReason(number)) => return Ok(number.to_string()),
            Err(error) => errors.push(error.to_string()),
        }
    }
    Err(Failure::Line(errors.join("; ")))
}

fn query_text(reason: Option<&str>, vcpu: Option<&str>) -> String {
    [("reason", reason), ("vcpu", vcpu)]
        .iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", encode((*value)?))))
        .collect::<Vec<_>>()
        .join("&")
}

/// Percent-encodes what has a meaning of its own in a request.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// The same query for snapshots that are narrowed here. The server has already
/// accepted it.
fn parsed_query(reason: Option<&str>, vcpu: Option<&str>) -> Query {
    let number = |text: &str| match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    Query {
        reason: reason.and_then(number).map(ExitReason),
        vcpu: vcpu.and_then(number),
        nonzero: false,
    }
}

/// How a snapshot is printed.
pub struct Render<'a> {
    name: String,
    args: &'a ExitStatsArgs,
    reason: Option<ExitReason>,
}

impl Render<'_> {
    /// Which rows, in which order.
    pub fn rows(&self) -> RowOptions {
        RowOptions {
            sort: match self.args.sort {
                Sort::Exits => SortBy::Exits,
                Sort::Time => SortBy::Cycles,
                Sort::Number => SortBy::Number,
            },
            // Whoever names a reason wants its row, zero or not.
            all: self.args.all || self.reason.is_some(),
            ticks: self.args.ticks,
        }
    }

    /// The form of the output.
    pub fn format(&self) -> Format {
        self.args.format
    }

    /// The text for one snapshot.
    pub fn snapshot(&self, snapshot: &ExitSnapshot) -> Result<String, Failure> {
        Ok(match self.args.format {
            Format::Table => {
                let mut text = match (self.reason, snapshot.isa) {
                    (Some(reason), Some(isa)) => {
                        let mut own = snapshot.clone();
                        let behind = UserExitKind::behind(isa, reason);
                        own.vmm.exits.retain(|row| behind.contains(&row.kind));
                        table(&own, &self.rows())
                    }
                    _ => table(snapshot, &self.rows()),
                };
                if let Some(note) = self.note(snapshot) {
                    text.push_str(&note);
                }
                text
            }
            Format::Json => {
                let mut text =
                    serde_json::to_string(snapshot).map_err(|error| Failure::from_error(&error))?;
                text.push('\n');
                text
            }
            Format::Csv => csv(snapshot, &self.rows()),
            Format::Openmetrics => openmetrics(&[(&self.name, snapshot)]),
        })
    }

    /// Says what a reader has to know of these counters where the format has no
    /// place for it.
    fn tell(&self, snapshot: &ExitSnapshot) {
        if matches!(self.args.format, Format::Csv | Format::Openmetrics) {
            for note in notes(snapshot).iter().chain(&snapshot.unavailable) {
                eprintln!("{note}");
            }
        }
    }

    /// Zeros mean something else where KVM has no handler.
    fn note(&self, snapshot: &ExitSnapshot) -> Option<String> {
        let table = snapshot.isa?.table();
        let reason = self.reason?;
        let entry = table.entry(reason)?;
        (table.status(reason) == ReasonStatus::NotEnabled).then(|| {
            format!(
                "\nReason {} ({}) is not enabled: KVM has no handler for it.\n",
                reason.0, entry.name
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_seconds_within_reason() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "-1", "nan", "inf", "1e9", "x"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_query_cannot_break_out_of_its_place() {
        assert_eq!(query_text(Some("48"), Some("0")), "reason=48&vcpu=0");
        assert_eq!(
            query_text(Some("1&vcpu=2 HTTP/1.1\r\nX: ä"), None),
            "reason=1%26vcpu%3D2%20HTTP%2F1.1%0D%0AX%3A%20%C3%A4"
        );
        assert_eq!(query_text(None, None), "");
    }

    #[test]
    fn numbers_are_read_as_the_server_reads_them() {
        let query = parsed_query(Some("0x30"), Some("2"));
        assert_eq!(query.reason, Some(ExitReason(48)));
        assert_eq!(query.vcpu, Some(2));
    }
}
