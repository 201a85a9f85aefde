//! The forms in which people and programs read a snapshot. JSON is the
//! snapshot's own serde form; the others are here.

mod csv;
mod guest;
mod openmetrics;
mod table;

pub use csv::csv;
pub use guest::guest_table;
pub use openmetrics::{CONTENT_TYPE, openmetrics, openmetrics_of_host};
pub use table::{reason_table, table, user_exit_table};

use crate::snapshot::ReasonCounters;

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

/// Which rows, in which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowOptions {
    /// The order of rows.
    pub sort: SortBy,
    /// Whether to show reasons that never occurred.
    pub all: bool,
}

impl RowOptions {
    /// The rows to show. Ties keep the order of the manual.
    pub fn rows<'a>(&self, reasons: &'a [ReasonCounters]) -> Vec<&'a ReasonCounters> {
        let mut rows: Vec<_> = reasons
            .iter()
            .filter(|row| self.all || !row.counters.is_zero())
            .collect();
        match self.sort {
            SortBy::Exits => rows.sort_by_key(|row| std::cmp::Reverse(row.counters.exits)),
            SortBy::Cycles => rows.sort_by_key(|row| std::cmp::Reverse(row.counters.cycles)),
            SortBy::Number => rows.sort_by_key(|row| row.number.unwrap_or(u32::MAX)),
        }
        rows
    }
}

#[cfg(test)]
mod tests;
