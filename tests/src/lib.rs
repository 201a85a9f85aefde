//! The lab: everything it takes to prove the whole system on a KVM host.
//!
//! Two programs share this crate. `lab` runs on the developer's machine: it
//! makes the artifacts, boots emulated hosts and judges what comes back.
//! `lab-suites` runs inside a host, emulated or real, where it starts our VMM
//! and compares what the views of it say with the kernel's own oracles.

#![forbid(unsafe_code)]

pub mod artifact;
pub mod bench;
pub mod check;
pub mod command;
pub mod console;
pub mod guest;
pub mod host;
pub mod load;
pub mod oracle;
pub mod package;
pub mod peer;
pub mod progress;
pub mod report;
pub mod selftests;
pub mod study;
pub mod task;
pub mod tools;
pub mod tree;
pub mod vmm;
