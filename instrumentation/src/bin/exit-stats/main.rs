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

use instrumentation::encode::guest_table;
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
    let clear = if options.watch.is_some() && isatty(start::stdout()) {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    loop {
        let text = match render(&options) {
            Ok(text) => text,
            Err(error) => {
                complain(&error);
                return 1;
            }
        };
        if let Err(status) = show(&format!("{clear}{text}")) {
            return status;
        }
        match options.watch {
            Some(interval) => sleep(interval),
            None => return 0,
        }
    }
}

fn render(options: &Options) -> Result<String, String> {
    let only = match options.reason {
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
