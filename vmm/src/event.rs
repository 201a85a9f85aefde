//! What devices, vCPUs and threads tell the control thread about the machine
//! they belong to. They know no more of it than this.

use std::fmt;
use std::sync::Arc;

/// Something that happens to the machine, most of which ends or restarts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest ejected the device with this id; it is off the bus.
    Ejected(String),
    /// The guest's driver took this device into use.
    DeviceActivated(String),
    /// It gave it back.
    DeviceReset(String),
    /// The guest's kernel panicked, and this is what it said of that.
    GuestPanic(&'static str),
    /// The machine cannot go on; the text says why.
    Failed(String),
}

/// Carries events to the control thread. Cheap to clone; callable from any
/// thread and never blocks.
#[derive(Clone)]
pub struct EventSink(Arc<dyn Fn(MachineEvent) + Send + Sync>);

impl EventSink {
    /// A sink that hands every event to `deliver`.
    pub fn new(deliver: impl Fn(MachineEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(deliver))
    }

    /// Reports an event.
    pub fn send(&self, event: MachineEvent) {
        (self.0)(event);
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink")
    }
}
