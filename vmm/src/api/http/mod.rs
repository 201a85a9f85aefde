//! As much of HTTP/1.1 as the API needs, without waiting for anything: bytes
//! go in, requests come out; responses go in, bytes come out.
//!
//! The published lineage of Cloud Hypervisor's HTTP crate was tried first. It
//! answers 500 to a request whose bytes pause for a millisecond, leaves
//! `Content-Length` out of empty responses, so that clients wait for a body
//! that never comes, has its own error bodies and lacks the statuses 409 and
//! 429. The header parser is `httparse`.

mod connection;
mod message;

pub use connection::{Connection, Progress};
pub use message::{ContentType, Method, Request, Response};

/// Descriptors that a client may send before its request is complete: as many
/// as the kernel takes in one message.
pub const MAX_DESCRIPTORS: usize = 253;
/// Largest body of a request, as Cloud Hypervisor has it.
pub const MAX_BODY: usize = 4 << 20;
/// Largest head of a request: request line and headers.
pub const MAX_HEAD: usize = 16 << 10;
