//! Which rows of a snapshot to show.

use super::SortBy;
use crate::snapshot::ReasonCounters;

/// Which rows, in which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowOptions {
    /// The order of rows.
    pub sort: SortBy,
    /// Whether to show reasons that never occurred.
    pub all: bool,
    /// Times in ticks of the host's TSC, not in seconds.
    pub ticks: bool,
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
