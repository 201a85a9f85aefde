//! The virtual machine monitor. Modules name only what stands below them:
//! `vm` knows all parts, devices know buses and interrupts, and nothing knows
//! the API but the API and the control thread.

pub mod api;
pub mod boot;
pub mod bus;
pub mod config;
pub mod console_end;
pub mod devices;
pub mod event;
pub mod interrupt;
pub mod memory;
pub mod monitor;
pub mod pci;
pub mod sandbox;
pub mod stats;
pub mod vcpu;
pub mod virtio;
pub mod vm;
