//! What a host needs to boot: packages, kernels, modules, binaries, images.
//!
//! Everything is kept under `target/lab` with the hash of its inputs beside
//! it, so that a second run finds it and starts in seconds.

pub mod binaries;
pub mod cpio;
pub mod debian;
pub mod guest_image;
pub mod guide;
pub mod host_image;
pub mod kernel;
pub mod measures;
pub mod modules;
pub mod packages;
pub mod payloads;
pub mod peer;
pub mod selftests;
pub mod stamp;
pub mod upstream;
