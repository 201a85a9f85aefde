//! Placeholder.

pub mod api;
