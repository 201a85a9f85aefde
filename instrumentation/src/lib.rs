//! VM-exit accounting without I/O: the exit-reason tables, snapshots of the
//! kernel's counters, differences between them, the recorder of exits to user
//! space, and the encoders for every form in which people read them.
//!
//! Without the feature `std` only the part that a guest needs is left, which
//! makes do with `alloc`: the tables, the leaves and their encoder.
#![forbid(unsafe_code)]
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod encode;
pub mod guest;
#[cfg(feature = "std")]
pub mod snapshot;
pub mod table;
#[cfg(feature = "std")]
pub mod user_exit;
