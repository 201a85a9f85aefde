//! What both sides of the API share: the configuration of a virtual machine,
//! the bodies of requests and responses, and the syntax of the command-line
//! flags that describe the same configuration.
//!
//! Nothing here knows how a virtual machine is built, so a client links none
//! of the VMM.
#![forbid(unsafe_code)]

#[cfg(feature = "http")]
pub mod client;
pub mod config;
#[cfg(feature = "client")]
pub mod exporter;
pub mod inspect;
#[cfg(test)]
mod openapi;
pub mod options;
#[cfg(feature = "client")]
pub mod recording;
#[cfg(feature = "client")]
pub mod remote;
#[cfg(feature = "client")]
pub mod report;
pub mod types;
mod unsupported;
#[cfg(feature = "client")]
pub mod watch;

pub use unsupported::{API_VERSION, UNSUPPORTED};
