//! The text of command-line flags, such as `--cpus boot=2`, as configuration:
//! every type of [`config`](crate::config) that a flag describes implements
//! [`FromStr`](std::str::FromStr).

mod cpus;
mod devices;
mod disk;
mod grammar;
mod memory;
mod net;
mod numa;
mod pci;
mod platform;
mod rate_limit;
mod restore;
mod serial;
mod socket;
mod stats_socket;

pub use grammar::{OptionError, Options, parse_size, required};
pub use socket::{ApiSocketArg, EventMonitorArg};
pub use stats_socket::{ExitStatsArg, StatsSocketArg};

#[cfg(test)]
mod tests;
