//! `exit-stats`: run in a guest, shows the VM's exits as the host counts them.
//! Needs no privilege: CPUID is all it uses.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use instrumentation::encode::{SortBy, guest_table};
use instrumentation::guest::{
    GuestError, GuestSnapshot, LEAF_INFO, LEAF_REASON_CYCLES, LEAF_REASON_EXITS, LEAF_TOTAL_CYCLES,
    LEAF_TOTAL_EXITS, Registers, identify,
};
use instrumentation::table::ExitReason;
use lexopt::prelude::*;

const HELP: &str = "\
Shows the exits of the virtual machine that this runs in, as its host counts them.

Usage: exit-stats [OPTIONS]

Options:
      --format FORMAT   table (default), json, or leaves: the raw registers of every leaf
      --json            the same as --format json
      --reason N|NAME   only this reason: a number as in the manual, or a name such as CPUID
      --sort ORDER      exits (default), cycles or number
      --all             also the reasons that never occurred
      --watch [SECONDS] again and again, every second or as told
  -h, --help            this text
  -V, --version         the version

Ends with 1 if the host does not count exits or the reason is undefined, with 2 if
the command line is wrong.";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Table,
    Json,
    Leaves,
}

struct Options {
    format: Format,
    sort: SortBy,
    all: bool,
    reason: Option<String>,
    watch: Option<Duration>,
}

fn main() -> ExitCode {
    let options = match parse() {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("exit-stats: {error}; see exit-stats --help");
            return ExitCode::from(2);
        }
    };
    loop {
        let text = match render(&options) {
            Ok(text) => text,
            Err(error) => {
                eprintln!("exit-stats: {error}");
                return ExitCode::FAILURE;
            }
        };
        let mut out = io::stdout();
        let clear = if options.watch.is_some() && out.is_terminal() {
            "\x1b[H\x1b[2J"
        } else {
            ""
        };
        if let Err(error) = write!(out, "{clear}{text}").and_then(|()| out.flush()) {
            // A reader that went away, such as head, is no failure of ours.
            return match error.kind() {
                io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
                _ => {
                    eprintln!("exit-stats: Cannot write: {error}");
                    ExitCode::FAILURE
                }
            };
        }
        match options.watch {
            Some(interval) => std::thread::sleep(interval),
            None => return ExitCode::SUCCESS,
        }
    }
}

fn parse() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options {
        format: Format::Table,
        sort: SortBy::Exits,
        all: false,
        reason: None,
        watch: None,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("json") => options.format = Format::Json,
            Long("format") => {
                options.format = match parser.value()?.string()?.as_str() {
                    "table" => Format::Table,
                    "json" => Format::Json,
                    "leaves" => Format::Leaves,
                    other => return Err(format!("no format is called {other:?}").into()),
                }
            }
            Long("sort") => {
                options.sort = match parser.value()?.string()?.as_str() {
                    "exits" => SortBy::Exits,
                    "cycles" => SortBy::Cycles,
                    "number" => SortBy::Number,
                    other => return Err(format!("no order is called {other:?}").into()),
                }
            }
            Long("reason") => options.reason = Some(parser.value()?.string()?),
            Long("all") => options.all = true,
            Long("watch") => {
                let seconds = match parser.optional_value() {
                    Some(value) => value.parse()?,
                    None => match parser.try_raw_args() {
                        Some(mut raw) => raw
                            .next_if(|next| next.to_str().is_some_and(|s| s.parse::<f64>().is_ok()))
                            .map_or(Ok(1.0), |value| value.parse())?,
                        None => 1.0,
                    },
                };
                options.watch = Some(
                    Duration::try_from_secs_f64(seconds)
                        .map_err(|_| format!("{seconds} is no number of seconds"))?,
                );
            }
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(None);
            }
            Short('V') | Long("version") => {
                println!("exit-stats {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(Some(options))
}

fn render(options: &Options) -> Result<String, String> {
    let only = match &options.reason {
        None => None,
        Some(text) => {
            let (isa, _) = identify(&cpuid).map_err(|error| error.to_string())?;
            Some(
                isa.table()
                    .parse(text)
                    .ok_or_else(|| format!("{text:?} is neither a number nor an exit reason"))?,
            )
        }
    };
    if options.format == Format::Leaves {
        return leaves(only).map_err(|error| error.to_string());
    }
    let mut snapshot = GuestSnapshot::read(&cpuid, only).map_err(|error| error.to_string())?;
    match options.format {
        Format::Json => {
            if !options.all && only.is_none() {
                snapshot.reasons.retain(|row| row.exits > 0);
            }
            serde_json::to_string(&snapshot)
                .map(|json| json + "\n")
                .map_err(|error| error.to_string())
        }
        _ => Ok(guest_table(
            &snapshot,
            options.sort,
            options.all || only.is_some(),
        )),
    }
}

/// Every leaf with its raw registers, undefined reasons included: what a
/// debugger of the kernel side, or a student of the leaves, wants to see.
fn leaves(only: Option<ExitReason>) -> Result<String, GuestError> {
    let (isa, _) = identify(&cpuid)?;
    let mut text =
        String::from("leaf        ecx         eax         ebx         ecx         edx\n");
    let mut line = |leaf, subleaf| {
        let Registers { eax, ebx, ecx, edx } = cpuid(leaf, subleaf);
        text.push_str(&format!(
            "{leaf:#010x}  {subleaf:#010x}  {eax:#010x}  {ebx:#010x}  {ecx:#010x}  {edx:#010x}\n"
        ));
    };
    for leaf in [LEAF_INFO, LEAF_TOTAL_EXITS, LEAF_TOTAL_CYCLES] {
        line(leaf, 0);
    }
    let last = isa.table().reasons.last().map_or(0, |entry| entry.number);
    for reason in 0..=last + 1 {
        if only.is_none_or(|only| only.0 == reason) {
            line(LEAF_REASON_EXITS, reason);
            line(LEAF_REASON_CYCLES, reason);
        }
    }
    Ok(text)
}

fn cpuid(leaf: u32, subleaf: u32) -> Registers {
    let result = std::arch::x86_64::__cpuid_count(leaf, subleaf);
    Registers {
        eax: result.eax,
        ebx: result.ebx,
        ecx: result.ecx,
        edx: result.edx,
    }
}
