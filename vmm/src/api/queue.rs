//! The way from the API thread to the control thread: a queue, an event that
//! says it is not empty, and a reply handle per request.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::request::{ApiError, ErrorKind, RequestHandler, VmAction, VmReply, VmStatus};

/// Outcome of an action.
pub type ApiResult = Result<VmReply, ApiError>;

/// An action with the handle to answer it.
pub struct ApiRequest {
    /// What to do.
    pub action: VmAction,
    /// Where the outcome goes.
    pub reply: ReplySender,
}

/// Answers one request exactly once: dropping it unused is an answer too, so
/// that no client waits for a thread that died.
pub struct ReplySender(Option<Box<dyn FnOnce(ApiResult) + Send>>);

impl ReplySender {
    /// A handle that passes the outcome to `deliver`.
    pub fn new(deliver: impl FnOnce(ApiResult) + Send + 'static) -> Self {
        ReplySender(Some(Box::new(deliver)))
    }

    /// Answers.
    pub fn send(mut self, outcome: ApiResult) {
        if let Some(deliver) = self.0.take() {
            deliver(outcome);
        }
    }
}

impl Drop for ReplySender {
    fn drop(&mut self) {
        if let Some(deliver) = self.0.take() {
            deliver(Err(ApiError::new(
                ErrorKind::Internal,
                "The request was dropped without an answer",
            )));
        }
    }
}

/// The latest [`VmStatus`], published by the control thread and read by the
/// API thread. The lock is held only to exchange a pointer.
#[derive(Clone, Debug, Default)]
pub struct StatusBoard {
    status: Arc<RwLock<Arc<VmStatus>>>,
    /// The action that is being carried out, and since when.
    busy: Arc<RwLock<Option<(&'static str, Instant)>>>,
}

impl StatusBoard {
    /// Replaces what readers see. The control thread calls it when the state
    /// changes for another reason than a request, the end of the guest for one.
    pub fn publish(&self, status: VmStatus) {
        *self.status.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(status);
    }

    /// The latest status.
    pub fn read(&self) -> Arc<VmStatus> {
        self.status
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What the control thread is carrying out at the moment, and since when.
    pub fn busy(&self) -> Option<(&'static str, Instant)> {
        *self.busy.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the control thread is carrying out from now on.
    pub fn set_busy(&self, action: Option<&'static str>) {
        let busy = action.map(|action| (action, Instant::now()));
        *self.busy.write().unwrap_or_else(PoisonError::into_inner) = busy;
    }
}

/// The API thread's end of the queue.
#[derive(Clone)]
pub struct ApiSender {
    requests: Sender<ApiRequest>,
    event: Arc<EventFd>,
}

impl ApiSender {
    /// Queues an action. When the control thread is gone, `reply` says so.
    pub fn send(&self, action: VmAction, reply: ReplySender) {
        // A request that cannot be queued is dropped, which answers it.
        if self.requests.send(ApiRequest { action, reply }).is_ok()
            && let Err(error) = self.event.write(1)
        {
            log::error!("cannot wake the control thread: {error}");
        }
    }
}

/// The control thread's end of the queue. Its descriptor becomes readable when
/// requests wait.
pub struct ApiQueue {
    requests: Receiver<ApiRequest>,
    event: Arc<EventFd>,
}

impl ApiQueue {
    /// Takes the next request, if there is one.
    pub fn next(&self) -> Option<ApiRequest> {
        self.requests.try_recv().ok()
    }

    /// Makes the descriptor quiet until the next request. Call it before
    /// draining with [`next`](Self::next), or a request may go unnoticed.
    pub fn acknowledge(&self) {
        // Nothing to read means that nothing was written: equally quiet.
        let _ = self.event.read();
    }

    /// Carries out everything that waits: each action's status is published
    /// before its answer leaves.
    pub fn serve(&self, handler: &mut impl RequestHandler, board: &StatusBoard) {
        self.acknowledge();
        while let Some(ApiRequest { action, reply }) = self.next() {
            board.set_busy(Some(action.name()));
            let outcome = handler.handle(action);
            board.publish(handler.status());
            board.set_busy(None);
            reply.send(outcome);
        }
    }
}

impl AsRawFd for ApiQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

/// Both ends of a new queue.
pub fn api_channel() -> io::Result<(ApiSender, ApiQueue)> {
    let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (sender, receiver) = channel();
    Ok((
        ApiSender {
            requests: sender,
            event: event.clone(),
        },
        ApiQueue {
            requests: receiver,
            event,
        },
    ))
}
