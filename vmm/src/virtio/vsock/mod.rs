//! The socket device (virtio 1.3, 5.10): streams between programs of the guest
//! and of the host, without a network.
//!
//! | queue | carries |
//! | --- | --- |
//! | 0 | packets to the guest |
//! | 1 | packets from the guest |
//! | 2 | events, of which there are none |
//!
//! Features offered: none. Refused: sequenced packets, for which a stream
//! socket on the host has no room.
//!
//! On the host there is a Unix socket. A program that connects to it writes
//! `CONNECT <port>`, is answered `OK <port of its own>` once the guest has
//! accepted, and is then connected. When a guest's program connects to a port
//! of the host, the socket `<path>_<port>` is connected to.
//!
//! [`packet`] is the wire format, [`connection`] one connection with its
//! credit, [`muxer`] all of them, [`host`] the Unix sockets.

mod connection;
mod device;
mod host;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;
mod worker;

pub use device::{Vsock, VsockParams};
