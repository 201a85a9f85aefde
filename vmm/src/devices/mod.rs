//! Devices that are no virtio devices: those of the platform, and one on the PCI bus.

mod cmos;
mod debug_console;
mod hotplug;
mod i8042;
mod ioapic;
mod pm_timer;
mod power;
pub mod pvpanic;
mod reset_control;
pub mod serial;

pub use cmos::Cmos;
pub use debug_console::DebugConsole;
pub use hotplug::{EVENT_PCI, EVENT_POWER_BUTTON, HotplugController, HotplugState};
pub use i8042::I8042;
pub use ioapic::{IoApic, IoApicState, Pin};
pub use pm_timer::PmTimer;
pub use power::{PowerRegisters, RESET_VALUE, S5_SLEEP_TYPE};
pub use reset_control::ResetControl;
