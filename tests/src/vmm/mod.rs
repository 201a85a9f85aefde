//! Drives our VMM from outside, as any user would: its command line, its
//! socket, `ch-remote`. None of its crates is linked here, so a mistake in
//! one of them cannot hide in its own test.

mod http;
mod machine;
mod stats;

pub use http::{Response, exchange_on, read_head, request, request_tcp, request_with, text_of};
pub use machine::{Finished, Machine, MachineSpec, Serial};
pub use stats::{Counters, Reason, Stats};
