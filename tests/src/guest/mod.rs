//! Guests: Linux for behaviour, a few bytes of our own for exact numbers.

mod assembled;
mod elf;
mod linux;
mod steps;
mod tiny;
mod vmlinux;

pub use assembled::{ManyExits, Nested, NestedReport, ResetWay, emulated, hostile};
pub use linux::{SCRIPT_END, UP, initramfs, initramfs_with};
pub use steps::{Buffer, RawDriver};
pub use tiny::{CpuidQuery, CpuidReading, Instruction, MAGIC, Program, cpuid_reader, readings};
pub use vmlinux::extract as extract_vmlinux;
