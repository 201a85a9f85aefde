//! The forms in which people and programs read a snapshot. JSON is the
//! snapshot's own serde form, which [`json`] writes too.

mod columns;
#[cfg(feature = "std")]
mod csv;
mod guest;
#[cfg(feature = "std")]
mod json;
#[cfg(feature = "std")]
mod openmetrics;
#[cfg(feature = "std")]
mod rows;
#[cfg(feature = "std")]
mod table;
mod time;

pub use columns::grouped;
#[cfg(feature = "std")]
pub use csv::csv;
pub use guest::{GuestRows, guest_table};
#[cfg(feature = "std")]
pub use json::{json, json_into};
#[cfg(feature = "std")]
pub use openmetrics::{
    CONTENT_TYPE, Detail, HostMetrics, VmMetrics, openmetrics, openmetrics_of_host,
};
#[cfg(feature = "std")]
pub use rows::RowOptions;
#[cfg(feature = "std")]
pub use table::{latency_table, notes, reason_table, table, user_exit_table};
pub use time::TimeUnit;

/// The order of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortBy {
    /// Most exits first.
    #[default]
    Exits,
    /// Most time in the kernel first.
    Cycles,
    /// By the manual's number.
    Number,
}

#[cfg(test)]
mod tests;
