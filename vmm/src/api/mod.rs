//! The API: HTTP/1.1 on a Unix socket, in Cloud Hypervisor's terms.
//!
//! One thread serves all connections. It answers reads by itself and hands
//! every change to the control thread through a queue ([`api_channel`]); while
//! the control thread works, reads go on.

mod queue;
mod request;

pub use queue::{
    ApiQueue, ApiRequest, ApiResult, ApiSender, ReplySender, StatusBoard, api_channel,
};
pub use request::{ApiError, DeviceTree, ErrorKind, RequestHandler, VmAction, VmReply, VmStatus};
