//! As much of HTTP/1.1 as the API needs, without waiting for anything: bytes
//! go in, requests come out; responses go in, bytes come out.
//!
//! Requests are parsed by `micro_http`, the crate that Firecracker and Cloud
//! Hypervisor use, one whole request at a time. It takes what this server
//! would not: heads of any length, lengths with a sign or twice, bodies in
//! chunks as if they were empty. So [`head`] decides first where a request
//! ends and whether it is one. Of the rest of the crate nothing is used: its
//! server has ten connections, and its responses lack `Content-Length` where
//! they are empty, and the statuses 409 and 429.

mod connection;
mod head;
mod message;

pub use connection::{CLIENT_TIMEOUT, Connection, Progress};
use head::{Head, find_head};
pub use message::{ContentType, Method, Request, Response};

/// Descriptors that a client may send before its request is complete: as many
/// as the kernel takes in one message.
pub const MAX_DESCRIPTORS: usize = 253;
/// Largest body of a request, as Cloud Hypervisor has it.
pub const MAX_BODY: usize = 4 << 20;
/// Largest head of a request: request line and headers.
pub const MAX_HEAD: usize = 16 << 10;
