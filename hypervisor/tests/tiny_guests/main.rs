//! Guests of a few instructions, run on the machine's own KVM. Without one the
//! tests say so and pass, unless LAB_KVM_REQUIRED is set: the lab's suite
//! `hypervisor` sets it and runs them on every emulated host.

mod counters;
mod exits;
mod guest;
mod state;
