//! `ch-remote exporter`: all VMs of a host on one TCP port, for Prometheus.
//!
//! A scrape looks for sockets anew, so VMs come and go as they please. All VMs
//! are asked at once; one that hangs is reported as down when the scrape's time
//! is over, and costs no other anything.

mod connection;
mod discovery;
mod http;
mod log;
mod module;
mod scrape;
mod server;
mod vms;

pub use discovery::{PatternError, Patterns};
pub use server::{Scraper, serve};
pub use vms::Vms;

#[cfg(test)]
mod tests;
