//! What `cargo lab` does, one module a command.

mod bench;
mod book;
mod build;
mod debian;
mod demo;
mod guests;
mod hosted;
mod kernels;
mod load;
mod load_busy;
mod look;
mod package;
mod selftests;
mod shell;
mod study;
mod test;
mod upstream;

pub use bench::{BenchPeer, bench};
pub use book::book;
pub use build::{Built, as_built, build};
pub use debian::{Options as DebianOptions, debian};
pub use demo::demo;
pub use guests::{Options as GuestsOptions, guests};
pub use kernels::kernels;
pub use load::load;
pub use load_busy::load_busy;
pub use look::look;
pub use package::package;
pub use selftests::selftests;
pub use shell::shell;
pub use study::study;
pub use test::{Options as TestOptions, bare, test};
pub use upstream::upstream;
