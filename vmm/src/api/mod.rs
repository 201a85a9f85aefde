//! The API: HTTP/1.1 on a Unix socket, in Cloud Hypervisor's terms.
//!
//! One thread serves all connections. It answers reads by itself (the state
//! from a [`StatusBoard`], the exit statistics from the hub) and hands every
//! change to the control thread through a queue ([`api_channel`]); while the
//! control thread works, reads go on.

mod answer;
mod descriptors;
mod exit_stats;
mod http;
mod inspect;
mod parameter;
mod queue;
mod request;
mod router;
mod server;
mod socket;

pub use descriptors::Descriptors;
pub use queue::{
    ApiQueue, ApiRequest, ApiResult, ApiSender, ReplySender, StatusBoard, api_channel,
};
pub use request::{
    ApiError, DeviceTree, ErrorKind, InspectMachine, NewDevice, RequestHandler, VmAction, VmReply,
    VmStatus,
};
pub use server::{ApiContext, ApiServer, ServerError, VmmIdentity, serve_on, start_server};
pub use socket::{ApiSocket, SocketError};

#[cfg(test)]
mod tests;
