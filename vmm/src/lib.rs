//! Placeholder.

pub mod api;
pub mod stats;
