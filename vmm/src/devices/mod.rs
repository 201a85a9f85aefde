//! Platform devices that need no bus of their own.

mod i8042;
mod ioapic;
mod power;
pub mod serial;

pub use i8042::I8042;
pub use ioapic::{IoApic, Pin};
pub use power::{PowerRegisters, RESET_VALUE, S5_SLEEP_TYPE};
