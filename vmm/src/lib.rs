//! The virtual machine monitor. Modules name only what stands below them:
//! `vm` knows all parts, devices know buses and interrupts, and nothing knows
//! the API but the API and the control thread.
//!
//! Unsafe code is denied here and allowed by name where it cannot be avoided:
//! in [`memory`], in [`sandbox`] and for the requests to tap interfaces.
#![deny(unsafe_code)]

mod acceptor;
pub mod api;
pub mod boot;
pub mod bus;
pub mod chardev;
pub mod config;
pub mod devices;
pub mod event;
pub mod host_file;
mod inspect;
pub mod interrupt;
mod log_limit;
#[expect(
    unsafe_code,
    reason = "guest memory is mapped, shared and handed to the kernel"
)]
pub mod memory;
pub mod monitor;
pub mod pci;
#[expect(
    unsafe_code,
    reason = "filters, signals and scheduling are raw system calls"
)]
pub mod sandbox;
mod sources;
pub mod state;
pub mod stats;
pub mod vcpu;
pub mod virtio;
pub mod vm;
