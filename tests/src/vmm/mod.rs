//! Drives our VMM from outside, as any user would: its command line, its
//! socket, `ch-remote`. The VMM is not linked here, so a mistake in it cannot
//! hide in its own test.

mod http;
mod machine;
mod stats;

pub use http::{Response, exchange_on, request, request_tcp, request_with};
pub use machine::{Finished, Machine, MachineSpec, Serial};
pub use stats::{Counters, Reason, Stats};
