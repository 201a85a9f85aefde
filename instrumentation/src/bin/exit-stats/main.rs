//! `exit-stats`: run in a guest, shows the VM's exits as the host counts them.
//! Needs no privilege: CPUID is all it uses.
//!
//! A guest's initramfs wants small programs, and Rust's own runtime is larger
//! than all of this. So the program that goes into guests is built without it:
//! feature `std` off, panics abort (profile `guest`). Every other build of the
//! package makes the same program the ordinary way. `start` is all that differs.
#![cfg_attr(all(not(feature = "std"), panic = "abort"), no_std, no_main)]
#![deny(unsafe_code)]

extern crate alloc;

mod options;
#[cfg_attr(
    all(not(feature = "std"), panic = "abort"),
    path = "start_without_std.rs"
)]
mod start;

use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

use instrumentation::encode::{GuestRows, guest_table};
use instrumentation::guest::{
    GuestError, GuestSnapshot, LEAF_INFO, LEAF_REASON_CYCLES, LEAF_REASON_EXITS, LEAF_TOTAL_CYCLES,
    LEAF_TOTAL_EXITS, Registers, identify,
};
use instrumentation::table::ExitReason;
use options::{Format, Options, Wish};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::termios::isatty;
use rustix::thread::{NanosleepRelativeResult, Timespec, nanosleep};
use rustix::time::{ClockId, clock_gettime};

/// Manual page and completions are made from this text too.
const HELP: &str = include_str!("help.txt");

const VERSION: &str = concat!("exit-stats ", env!("CARGO_PKG_VERSION"), "\n");

#[cfg(not(all(not(feature = "std"), panic = "abort")))]
fn main() -> std::process::ExitCode {
    start::with_arguments(run)
}

/// Does what the command line says. The result is the exit status.
fn run(arguments: &[&[u8]]) -> u8 {
    let options = match options::parse(arguments) {
        Ok(Wish::Read(options)) => options,
        Ok(Wish::Help) => return show(HELP).unwrap_or_else(|status| status),
        Ok(Wish::Version) => return show(VERSION).unwrap_or_else(|status| status),
        Err(error) => {
            complain(&format!("{error}; see exit-stats --help"));
            return 2;
        }
    };
    match options.watch {
        Some(interval) => watch(&options, interval),
        None => match once(&options) {
            Ok(text) => show(&text).unwrap_or_else(|status| status),
            Err(error) => {
                complain(&error);
                1
            }
        },
    }
}

fn once(options: &Options) -> Result<String, String> {
    let only = wanted_reason(options)?;
    if options.format == Format::Leaves {
        return leaves(only).map_err(|error| error.to_string());
    }
    let snapshot = GuestSnapshot::read(&cpuid, only).map_err(|error| error.to_string())?;
    render(snapshot, options, only)
}

/// Shows what happened in each interval, until the reader has seen enough. While
/// the host does not count, that is said and waited for its end.
fn watch(options: &Options, interval: Duration) -> u8 {
    let only = match wanted_reason(options) {
        Ok(only) => only,
        Err(error) => {
            complain(&error);
            return 1;
        }
    };
    let clear = if isatty(start::stdout()) {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    let mut last: Option<(GuestSnapshot, u64)> = None;
    let mut counting = true;
    let mut begun = false;
    loop {
        let now = microseconds();
        let text = match (options.format, GuestSnapshot::read(&cpuid, only)) {
            // Nothing has been seen yet that could come back.
            (_, Err(error)) if !begun => {
                complain(&error.to_string());
                return 1;
            }
            (_, Err(error)) => {
                if counting {
                    complain(&format!("{error}; waiting"));
                }
                counting = false;
                last = None;
                None
            }
            (Format::Leaves, Ok(_)) => Some(leaves(only).map_err(|error| error.to_string())),
            (_, Ok(snapshot)) => {
                counting = true;
                let delta = last.as_ref().map(|(earlier, then)| {
                    snapshot.clone().since(earlier, now.saturating_sub(*then))
                });
                last = Some((snapshot, now));
                delta.map(|delta| render(delta, options, only))
            }
        };
        begun = true;
        match text {
            Some(Ok(text)) => {
                if let Err(status) = show(&format!("{clear}{text}")) {
                    return status;
                }
            }
            Some(Err(error)) => {
                complain(&error);
                return 1;
            }
            None => {}
        }
        sleep(interval);
    }
}

/// Microseconds of the guest's monotonic clock.
fn microseconds() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // The clock begins at zero when the guest boots.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let rest = u64::try_from(time.tv_nsec).unwrap_or(0) / 1000;
    seconds.saturating_mul(1_000_000).saturating_add(rest)
}

fn wanted_reason(options: &Options) -> Result<Option<ExitReason>, String> {
    let Some(text) = options.reason else {
        return Ok(None);
    };
    let (isa, _) = identify(&cpuid).map_err(|error| error.to_string())?;
    isa.table()
        .find(text)
        .map(Some)
        .map_err(|error| error.to_string())
}

fn render(
    mut snapshot: GuestSnapshot,
    options: &Options,
    only: Option<ExitReason>,
) -> Result<String, String> {
    match options.format {
        Format::Json => {
            if !options.all && only.is_none() {
                snapshot.reasons.retain(|row| row.exits > 0);
            }
            serde_json::to_string(&snapshot)
                .map(|json| json + "\n")
                .map_err(|error| error.to_string())
        }
        _ => {
            let rows = GuestRows {
                sort: options.sort,
                all: options.all || only.is_some(),
                ticks: options.ticks,
            };
            Ok(guest_table(&snapshot, rows))
        }
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
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    Registers {
        eax: result.eax,
        ebx: result.ebx,
        ecx: result.ecx,
        edx: result.edx,
    }
}

/// Writes to standard output; both outcomes are the exit status that follows.
fn show(text: &str) -> Result<u8, u8> {
    match write_all(start::stdout(), text) {
        Ok(()) => Ok(0),
        // A reader that went away, such as head, is no failure of ours.
        Err(Errno::PIPE) => Err(0),
        Err(error) => {
            complain(&format!("Cannot write: {}", start::describe(error)));
            Err(1)
        }
    }
}

/// Says on standard error what is wrong; nobody could be told if that failed.
fn complain(text: &str) {
    let _ = write_all(start::stderr(), &format!("exit-stats: {text}\n"));
}

fn write_all(to: BorrowedFd<'_>, text: &str) -> Result<(), Errno> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn sleep(interval: Duration) {
    let forever = Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    };
    let mut rest = Timespec::try_from(interval).unwrap_or(forever);
    while let NanosleepRelativeResult::Interrupted(remaining) = nanosleep(&rest) {
        rest = remaining;
    }
}
