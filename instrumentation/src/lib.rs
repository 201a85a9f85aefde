//! VM-exit accounting without I/O: the exit-reason tables, snapshots of the
//! kernel's counters, differences between them, the recorder of exits to user
//! space, and the encoders for every form in which people read them.
#![forbid(unsafe_code)]

pub mod encode;
pub mod guest;
pub mod snapshot;
pub mod table;
pub mod user_exit;
