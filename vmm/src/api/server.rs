//! The API thread: one event loop over the sockets, their clients and the
//! answers that come back from the control thread.

mod event_loop;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use api_client::API_VERSION;
use event_manager::{EventManager, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use event_loop::{ClientId, EventLoop, LISTENER, STATISTICS};

use super::http::Response;
use super::inspect::Inspector;
use super::queue::{ApiSender, ReplySender, StatusBoard};
use super::request::{VmAction, chain_of};
use super::socket::{ApiSocket, SocketError};
use crate::sandbox::{Filter, ThreadKind, catch_panic, confine_early, enrol_thread};
use crate::sources::io_error;
use crate::stats::StatsHub;

/// Events that are served at a time.
const BATCH: usize = 128;

/// What the API thread answers from.
#[derive(Clone)]
pub struct ApiContext {
    /// The way to the control thread.
    pub sender: ApiSender,
    /// The machine's state as the control thread last published it.
    pub board: StatusBoard,
    /// The exit statistics.
    pub stats: Arc<StatsHub>,
    /// What `vmm.ping` says.
    pub identity: VmmIdentity,
}

/// What the VMM says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmIdentity {
    /// What exactly was built.
    pub build_version: String,
    /// Version of the release.
    pub version: String,
    /// What was built in.
    pub features: Vec<String>,
}

impl Default for VmmIdentity {
    /// This program.
    fn default() -> Self {
        Self {
            build_version: concat!("v", env!("CARGO_PKG_VERSION")).into(),
            version: API_VERSION.into(),
            features: vec!["exit_stats".into(), "kvm".into()],
        }
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// There is no socket to listen on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The event loop cannot be set up.
    #[error("Cannot set up the API server")]
    SetUp(#[source] io::Error),
    /// The API thread ended before its time.
    #[error("The API server failed: {0}")]
    Failed(String),
}

/// A running server. Ends with the value: see [`stop`](Self::stop).
pub struct ApiServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

/// What other threads access of the event loop.
struct Shared {
    wake: EventFd,
    stopping: AtomicBool,
    answers: Mutex<Vec<(ClientId, Response)>>,
}

impl Shared {
    fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot wake the API thread: {error}");
        }
    }
}

/// Listens at `path` and serves.
pub fn start_server(path: &Path, context: ApiContext) -> Result<ApiServer, ServerError> {
    serve_on(Some(ApiSocket::bind(path)?), None, context)
}

/// Serves on sockets that are there already: everything on `api`, and what only reads
/// statistics on `statistics`.
///
/// # Errors
///
/// The event loop cannot be set up.
pub fn serve_on(
    api: Option<ApiSocket>,
    statistics: Option<ApiSocket>,
    context: ApiContext,
) -> Result<ApiServer, ServerError> {
    let listeners: Vec<_> = [(LISTENER, api), (STATISTICS, statistics)]
        .into_iter()
        .filter_map(|(token, socket)| Some((token, socket?)))
        .collect();
    let sockets = listeners.iter();
    let paths: Vec<_> = sockets
        .filter_map(|(_, socket)| socket.reachable())
        .collect();
    let set_up = |error| ServerError::SetUp(io_error(error));
    let shared = Arc::new(Shared {
        wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ServerError::SetUp)?,
        stopping: AtomicBool::new(false),
        answers: Mutex::new(Vec::new()),
    });
    let sender = context.sender.clone();
    let inspector = Inspector::start(context.board.clone()).map_err(ServerError::SetUp)?;
    let event_loop = EventLoop::new(listeners, context, inspector, Arc::clone(&shared));
    let event_loop = Arc::new(Mutex::new(event_loop));
    let mut manager = EventManager::new_with_capacity(BATCH).map_err(set_up)?;
    let id = manager.add_subscriber(Arc::clone(&event_loop));
    if let Some(error) = event_loop::lock(&event_loop).take_failure() {
        return Err(ServerError::SetUp(error));
    }
    let filter = Filter::of(ThreadKind::Api).map_err(|error| ServerError::SetUp(error.into()))?;
    let thread = Builder::new()
        .name("api".into())
        .spawn(move || {
            let _enrolled = enrol_thread("api", ThreadKind::Api);
            let outcome = catch_panic(|| {
                confine_early(&paths).map_err(io::Error::other)?;
                filter.apply()?;
                event_loop::run(&mut manager, id, &event_loop)
            });
            let problem = match outcome {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => chain_of(&error).join(": "),
                Err(panic) => format!("its thread {panic}"),
            };
            // A machine that nobody can access any more is not left running.
            sender.send(VmAction::VmmShutdown, ReplySender::new(|_| {}));
            Err(ServerError::Failed(problem))
        })
        .map_err(ServerError::SetUp)?;
    Ok(ApiServer {
        shared,
        thread: Some(thread),
    })
}

impl ApiServer {
    /// Sends the answers that are ready, closes all connections and removes
    /// the socket. Tells if the server had failed before.
    pub fn stop(mut self) -> Result<(), ServerError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), ServerError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake();
        thread
            .join()
            .unwrap_or_else(|_| Err(ServerError::Failed("its thread panicked".into())))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!("{error}");
        }
    }
}
