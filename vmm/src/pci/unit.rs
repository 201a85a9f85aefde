//! What the machine has to know of a device on the bus beside its registers.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use api_client::config::VmConfig;
use api_client::inspect::InspectNode;
use hypervisor::Vm;
use serde_json::Value;

use super::{PciAddress, PciFunction};
use crate::bus::Bus;
use crate::event::EventSink;
use crate::inspect::{Inside, Scope};
use crate::interrupt::{InterruptError, MsiRouter};
use crate::memory::GuestRam;
use crate::state::StateError;

/// What the machine offers to devices on the bus.
#[derive(Clone)]
pub struct PciContext {
    /// The hypervisor's machine.
    pub vm: Arc<dyn Vm>,
    /// Interrupts.
    pub router: Arc<MsiRouter>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Guest memory.
    pub memory: Arc<GuestRam>,
    /// Hears of what guests do with devices.
    pub events: EventSink,
}

/// Counters of a device, by name. Read on the API's thread at any time, so the
/// reading takes no lock that the device holds while it works.
pub trait DeviceCounters: Send + Sync {
    /// The counters as they are now. What has no value yet is left out.
    fn read(&self) -> BTreeMap<String, u64>;

    /// Whether the counter of this name only grows; an average, say, does not.
    fn only_grows(&self, _name: &str) -> bool {
        true
    }
}

/// Shows a device's counters in an inspection, as such where they only grow.
pub fn show_counters(counters: Option<&dyn DeviceCounters>, node: &mut InspectNode) {
    let Some(counters) = counters else {
        return;
    };
    for (name, value) in counters.read() {
        match counters.only_grows(&name) {
            true => node.count(&name, value),
            false => node.set(&name, value),
        }
    }
}

/// A function that is a device of the machine. The control thread calls it, while
/// vCPU threads use its registers.
pub trait PciUnit: PciFunction {
    /// The id of the function, where it is not that of the device.
    fn function_id(&self) -> Option<String> {
        None
    }

    /// Address and bytes of the BAR, as the guest has placed it or as it finds it.
    fn bar(&self) -> (u64, u64);

    /// Counters for `vm.counters`, if there are any.
    fn counters(&self) -> Option<Arc<dyn DeviceCounters>> {
        None
    }

    /// The part of an inspection that it belongs to.
    fn family(&self) -> &'static str {
        "devices"
    }

    /// Asks whoever else knows of the device for an inspection, and does not wait.
    fn ask(&self) {}

    /// Shows the device, after [`ask`](Self::ask). Waits for nobody for longer than
    /// `scope` and `inside` allow.
    fn inspect(&self, _scope: &Scope<'_>, node: &mut InspectNode, _inside: &Inside<'_>) {
        show_counters(self.counters().as_deref(), node);
    }

    /// Address of the BAR, if the guest has placed it, and its bytes; for an
    /// inspection, which does not wait.
    fn inspect_bar(&self) -> (Option<u64>, u64) {
        let (base, size) = self.bar();
        (Some(base), size)
    }

    /// The device's configuration has changed by itself: shows it to the driver.
    fn config_changed(&self) {}

    /// Has the device leave guest memory and interrupts alone, and returns when it
    /// does.
    fn pause(&self) {}

    /// Has it go on.
    fn resume(&self) {}

    /// The device as it is, while it is paused.
    ///
    /// # Errors
    /// Interrupts that are on their way cannot be waited for.
    fn save(&self) -> Result<Value, InterruptError>;

    /// Makes the device what was saved. It is as after a reset, and paused.
    ///
    /// # Errors
    /// It is the state of another device, or the host does not do what it takes.
    fn restore(&self, state: &Value) -> Result<(), StateError>;
}

/// Why a device cannot be made.
pub type UnitError = Box<dyn Error + Send + Sync>;

/// Makes a device, called so and at this address.
pub type CreateUnit = fn(&str, PciAddress, &PciContext) -> Result<Arc<dyn PciUnit>, UnitError>;

/// A kind of device that a flag of the configuration asks for: a machine has one or
/// none, from its boot to its end.
pub struct FlagDevice {
    /// Its id.
    pub id: &'static str,
    /// Whether it is asked for.
    pub is_wanted: fn(&VmConfig) -> bool,
    /// Makes it.
    pub create: CreateUnit,
}

impl PartialEq for FlagDevice {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for FlagDevice {}

impl fmt::Debug for FlagDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}
