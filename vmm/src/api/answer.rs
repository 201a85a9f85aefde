//! From results to responses.

use api_client::types::{VmInfo, VmmPing};

use super::http::Response;
use super::queue::ApiResult;
use super::request::{ApiError, ErrorKind, VmAction, VmReply, VmStatus};
use super::server::VmmIdentity;

/// `vmm.ping`
pub fn ping(identity: &VmmIdentity) -> Response {
    Response::json(&VmmPing {
        build_version: identity.build_version.clone(),
        version: identity.version.clone(),
        pid: i64::from(std::process::id()),
        features: identity.features.clone(),
    })
}

const NO_INFO: &str = "The VM info is not available";

/// `vm.info`
pub fn info(status: &VmStatus) -> Response {
    match &status.info {
        Some(info) => match &status.balloon {
            None => Response::json(info),
            Some(taken) => Response::json(&VmInfo {
                memory_actual_size: info.memory_actual_size.saturating_sub(taken()),
                ..info.clone()
            }),
        },
        None => no_vm(),
    }
}

/// To whoever asks about a VM that there is not.
pub fn no_vm() -> Response {
    error(
        ApiError::new(ErrorKind::NotFound, "VM is not created"),
        NO_INFO,
    )
}

/// `vm.counters`
pub fn counters(status: &VmStatus) -> Response {
    match &status.counters {
        Some(counters) => Response::json(&counters()),
        None => error(
            ApiError::new(ErrorKind::Internal, "VM is not running"),
            NO_INFO,
        ),
    }
}

/// The response to an action that has nothing to say. Clients of Cloud
/// Hypervisor see an empty body after `vmm.shutdown`, none after the others.
pub fn empty_reply(action: &VmAction) -> Response {
    match action {
        VmAction::VmmShutdown => Response::empty(),
        _ => Response::no_content(),
    }
}

/// The response to an action's outcome.
pub fn outcome(outcome: ApiResult, failure: &str, on_success: Response) -> Response {
    match outcome {
        Ok(VmReply::Empty) => on_success,
        Ok(VmReply::Device(device)) => Response::json(&device),
        Err(cause) => error(cause, failure),
    }
}

/// A failure, and what failed by it.
pub fn error(error: ApiError, failure: &str) -> Response {
    let status = match error.kind {
        ErrorKind::BadRequest => 400,
        ErrorKind::NotFound => 404,
        ErrorKind::Conflict => 409,
        ErrorKind::TryLater => 429,
        ErrorKind::Internal => 500,
    };
    let error = error.context(failure).context("Error from API");
    Response::error(status, error.chain)
}
