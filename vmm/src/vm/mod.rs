//! The machine's life: its states, how it is built, and the control thread
//! that owns every change.

mod builder;
mod consoles;
mod control;
mod deadline;
mod device_tree;
mod inspect;
mod landlock_rules;
mod legacy;
mod machine;
mod reset_loop;
mod snapshot;
mod state;

pub use builder::{BuildError, Carried, Origin, build};
pub use control::{ControlError, Ended, Signals, Vmm};
pub use device_tree::{DeviceError, DeviceTree};
pub use machine::{Machine, MachineState};
pub use snapshot::SnapshotError;
pub use state::{TransitionError, VmState};
