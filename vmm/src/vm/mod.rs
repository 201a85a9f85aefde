//! The machine's life: its states, how it is built, and the control thread
//! that owns every change.

mod builder;
mod confinement;
mod consoles;
mod control;
mod deadline;
mod devices;
mod machine;
mod state;

pub use builder::{BuildError, build};
pub use control::{ControlError, Ended, Signals, Vmm};
pub use devices::{DeviceError, DeviceSet};
pub use machine::Machine;
pub use state::{TransitionError, VmState};
