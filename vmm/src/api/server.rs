//! The API thread: one event loop over the socket, its connections and the
//! answers that come back from the control thread.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use api_client::API_VERSION;
use instrumentation::snapshot::Query;
use rustix::net::sockopt;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::descriptors::Budget;
use super::http::{CLIENT_TIMEOUT, Connection, Progress, Request, Response};
use super::queue::{ApiResult, ApiSender, ReplySender, StatusBoard};
use super::request::{VmAction, chain_of};
use super::router::{Call, route, route_statistics};
use super::socket::{ApiSocket, SocketError};
use super::{answer, exit_stats};
use crate::log_limit::LogLimit;
use crate::sandbox::{Filter, ThreadKind, catch_panic, confine_early};
use crate::stats::StatsHub;

/// Clients of the API that may be connected at a time.
const MAX_CONNECTIONS: usize = 512;
/// Clients that are accepted, and requests sent ahead that are answered,
/// before the loop looks for other events.
const MAX_TURN: usize = 64;
/// Descriptors that clients may have here, all together.
const MAX_DESCRIPTORS: usize = 512;
/// How long the end of the server waits for clients to take their answers.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// How often clients are looked for whose time is over.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of answers that the kernel may hold for a client: those of a machine
/// with many vCPUs, twice over. The kernel's own limit may be lower.
const SEND_BUFFER: usize = 1 << 20;

/// Clients of the statistics socket that may be connected besides: users who may
/// only read take no place from those who control the VM.
const MAX_READERS: usize = 64;

const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const STATISTICS: u64 = 2;
const FIRST_CONNECTION: u64 = 3;

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
    answers: Mutex<Vec<(u64, Response)>>,
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
    let set_up = || -> io::Result<(EventLoop, Arc<Shared>)> {
        let shared = Arc::new(Shared {
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            stopping: AtomicBool::new(false),
            answers: Mutex::new(Vec::new()),
        });
        let epoll = Epoll::new()?;
        let listeners: Vec<_> = [(LISTENER, api), (STATISTICS, statistics)]
            .into_iter()
            .filter_map(|(token, socket)| Some((token, socket?)))
            .collect();
        let sockets = listeners
            .iter()
            .map(|(token, socket)| (socket.listener().as_raw_fd(), *token));
        for (fd, token) in sockets.chain([(shared.wake.as_raw_fd(), WAKE)]) {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )?;
        }
        let event_loop = EventLoop {
            name: listeners
                .first()
                .map_or_else(String::new, |(_, socket)| socket.name()),
            listeners,
            epoll,
            context,
            shared: shared.clone(),
            connections: HashMap::new(),
            next_token: FIRST_CONNECTION,
            sent_ahead: VecDeque::new(),
            budget: Budget::new(MAX_DESCRIPTORS),
            next_sweep: None,
            limit: LogLimit::new("api"),
            shared_answers: Vec::new(),
            bodies: exit_stats::BufferPool::default(),
        };
        Ok((event_loop, shared))
    };
    let (mut event_loop, shared) = set_up().map_err(ServerError::SetUp)?;
    let filter = Filter::of(ThreadKind::Api).map_err(|error| ServerError::SetUp(error.into()))?;
    let thread = Builder::new()
        .name("api".into())
        .spawn(move || {
            let outcome = catch_panic(|| {
                let sockets = event_loop.listeners.iter();
                let paths: Vec<_> = sockets
                    .filter_map(|(_, socket)| socket.reachable())
                    .collect();
                confine_early(&paths).map_err(io::Error::other)?;
                filter.apply()?;
                event_loop.run()
            });
            let problem = match outcome {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => chain_of(&error).join(": "),
                Err(panic) => format!("its thread {panic}"),
            };
            // A machine that nobody can access any more is not left running.
            event_loop
                .context
                .sender
                .send(VmAction::VmmShutdown, ReplySender::new(|_| {}));
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

struct Client {
    connection: Connection,
    /// Came by the statistics socket.
    reader: bool,
    interest: EventSet,
}

struct EventLoop {
    /// Name of the machine in metrics.
    name: String,
    /// By token.
    listeners: Vec<(u64, ApiSocket)>,
    epoll: Epoll,
    context: ApiContext,
    shared: Arc<Shared>,
    connections: HashMap<u64, Client>,
    // Never used twice: a late answer cannot access the wrong client.
    next_token: u64,
    /// Requests that came together with earlier ones of the same clients. They
    /// wait for their turn: nobody waits for more than one of each client.
    sent_ahead: VecDeque<(u64, Request)>,
    /// Descriptors that clients may still send.
    budget: Budget,
    /// When to look for clients whose time is over; `None` while there can be
    /// none.
    next_sweep: Option<Instant>,
    limit: LogLimit,
    /// Answers made since the last wait for events, by query; none for the
    /// metrics. Whoever had begun to ask when that wait ended may share them:
    /// they are no older than the question. Many clients then cost little more
    /// than one.
    shared_answers: Vec<(Option<Query>, Response)>,
    bodies: exit_stats::BufferPool,
}

impl EventLoop {
    fn run(&mut self) -> io::Result<()> {
        let mut events = vec![EpollEvent::default(); 128];
        loop {
            let count = match self.epoll.wait(self.timeout(), &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.shared_answers.clear();
            let due = self.sent_ahead.len().min(MAX_TURN);
            for event in &events[..count] {
                match event.data() {
                    listener @ (LISTENER | STATISTICS) => self.accept(listener),
                    WAKE => self.deliver_answers(),
                    token => self.on_connection(token, event.event_set()),
                }
            }
            self.answer_sent_ahead(due);
            self.sweep();
            if self.shared.stopping.load(Ordering::Acquire) {
                self.drain_responses();
                return Ok(());
            }
        }
    }

    /// Milliseconds to wait for events at most; -1 for ever.
    fn timeout(&self) -> i32 {
        if !self.sent_ahead.is_empty() {
            return 0;
        }
        match self.next_sweep {
            None => -1,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1)
            }
        }
    }

    /// Ends connections whose clients took too long.
    fn sweep(&mut self) {
        let now = Instant::now();
        if self.next_sweep.is_some_and(|at| now < at) {
            return;
        }
        let mut any = false;
        self.connections.retain(|_, client| {
            let Some(deadline) = client.connection.deadline() else {
                return true;
            };
            any = true;
            now < deadline || client.connection.expire() != Progress::Done
        });
        self.next_sweep = any.then(|| now + SWEEP_INTERVAL);
    }

    fn accept(&mut self, listener: u64) {
        for _ in 0..MAX_TURN {
            let socket = self.listeners.iter().find(|(token, _)| *token == listener);
            let Some(stream) = socket.and_then(|(_, socket)| socket.listener().accept()) else {
                return;
            };
            if let Err(error) = self.admit(stream, listener == STATISTICS) {
                self.limit
                    .warn(&format_args!("a client cannot be served: {error}"));
            }
        }
    }

    /// Ends the connection of its kind on which nothing was asked for the
    /// longest time, if that is long.
    fn make_room(&mut self, reader: bool) -> bool {
        let idle = self
            .connections
            .iter()
            .filter(|(_, client)| client.reader == reader)
            .filter_map(|(&token, client)| Some((client.connection.idle_since()?, token)))
            .min();
        match idle {
            Some((since, token)) if since.elapsed() >= CLIENT_TIMEOUT => {
                self.connections.remove(&token).is_some()
            }
            _ => false,
        }
    }

    fn admit(&mut self, mut stream: UnixStream, reader: bool) -> io::Result<()> {
        // So that an answer leaves in one piece where the kernel allows it. It
        // arrives in any case.
        let _ = sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
        let limit = if reader { MAX_READERS } else { MAX_CONNECTIONS };
        let of_its_kind = |client: &&Client| client.reader == reader;
        let full = self.connections.values().filter(of_its_kind).count() >= limit;
        if full && !self.make_room(reader) {
            let response = Response::error(
                503,
                [
                    "Service Unavailable".to_owned(),
                    format!("{limit} clients are connected already"),
                ],
            );
            return stream.write_all(&response.closing().to_bytes());
        }
        let token = self.next_token;
        self.next_token += 1;
        let interest = EventSet::IN;
        self.epoll.ctl(
            ControlOperation::Add,
            stream.as_raw_fd(),
            EpollEvent::new(interest, token),
        )?;
        let connection = Connection::new(stream, self.budget.clone());
        self.connections.insert(
            token,
            Client {
                connection,
                reader,
                interest,
            },
        );
        Ok(())
    }

    fn on_connection(&mut self, token: u64, events: EventSet) {
        let Some(client) = self.connections.get_mut(&token) else {
            return;
        };
        // Nobody is there to read an answer. Were the client kept until its
        // answer is ready, this event would come again and again.
        let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR)
            && !client.connection.wants_read();
        let progress = if gone {
            Progress::Done
        } else {
            client.connection.advance()
        };
        self.follow(token, progress, true);
    }

    /// Goes on with a connection until it has to wait. A request that follows
    /// on one that is answered here waits for its turn. `may_share` says that
    /// the request had begun to arrive when the last wait for events ended.
    fn follow(&mut self, token: u64, mut progress: Progress, may_share: bool) {
        if let Progress::Request(request) = progress {
            progress = match self.handle(token, &request, may_share) {
                Some(response) => self.respond(token, response),
                None => Progress::Idle,
            };
        }
        if let Progress::Request(request) = progress {
            self.sent_ahead.push_back((token, request));
            progress = Progress::Idle;
        }
        let Some(client) = self.connections.get_mut(&token) else {
            return;
        };
        if progress == Progress::Done || client.update_interest(&self.epoll, token).is_err() {
            // Closing the descriptor takes it out of the epoll set.
            self.connections.remove(&token);
        } else if self.next_sweep.is_none() && client.connection.deadline().is_some() {
            self.next_sweep = Some(Instant::now() + SWEEP_INTERVAL);
        }
    }

    fn respond(&mut self, token: u64, response: Response) -> Progress {
        match self.connections.get_mut(&token) {
            Some(client) => client.connection.respond(response),
            None => Progress::Done,
        }
    }

    /// Answers the first `due` requests that were sent ahead: those that were
    /// there when the last wait for events ended.
    fn answer_sent_ahead(&mut self, due: usize) {
        for _ in 0..due {
            let Some((token, request)) = self.sent_ahead.pop_front() else {
                return;
            };
            if self.connections.contains_key(&token) {
                self.follow(token, Progress::Request(request), true);
            }
        }
    }

    /// Answers at once, or hands the request to the control thread.
    fn handle(&mut self, token: u64, request: &Request, may_share: bool) -> Option<Response> {
        let context = &self.context;
        let reader = self.connections.get(&token).is_some_and(|it| it.reader);
        let call = match reader {
            true => route_statistics(request),
            false => route(request),
        };
        match call {
            Err(response) => Some(response),
            Ok(Call::Ping) => Some(answer::ping(&context.identity)),
            Ok(Call::Info) => Some(answer::info(&context.board.read())),
            Ok(Call::Counters) => Some(answer::counters(&context.board.read())),
            Ok(Call::ExitStats(query)) => Some(self.exit_stats(Some(query), may_share)),
            Ok(Call::Metrics) => Some(self.exit_stats(None, may_share)),
            Ok(Call::Action { action, failure }) => {
                self.hand_over(token, action, failure);
                None
            }
        }
    }

    fn exit_stats(&mut self, query: Option<Query>, may_share: bool) -> Response {
        let mut shared = self.shared_answers.iter().rev();
        let shared = shared.find(|(known, _)| *known == query);
        if let Some((_, response)) = shared
            && may_share
        {
            return response.clone();
        }
        let stats = &self.context.stats;
        let response = match &query {
            Some(query) => exit_stats::snapshot(stats, query, &mut self.bodies),
            None => exit_stats::metrics(stats, &self.name),
        };
        self.shared_answers.push((query, response.clone()));
        response
    }

    fn hand_over(&self, token: u64, action: VmAction, failure: &'static str) {
        let on_success = answer::empty_reply(&action);
        let shared = Arc::clone(&self.shared);
        let deliver = move |outcome: ApiResult| {
            let response = answer::outcome(outcome, failure, on_success);
            shared
                .answers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((token, response));
            shared.wake();
        };
        self.context.sender.send(action, ReplySender::new(deliver));
    }

    fn deliver_answers(&mut self) {
        // Nothing to read means that nothing was written: equally quiet.
        let _ = self.shared.wake.read();
        let answers = std::mem::take(
            &mut *self
                .shared
                .answers
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (token, response) in answers {
            if self.connections.contains_key(&token) {
                let progress = self.respond(token, response);
                self.follow(token, progress, false);
            }
        }
    }

    /// Gives clients a moment to take answers that are ready: the one that
    /// asked for the end is among them.
    fn drain_responses(&mut self) {
        self.deliver_answers();
        let deadline = Instant::now() + SHUTDOWN_GRACE;
        while Instant::now() < deadline {
            self.connections
                .retain(|_, client| client.connection.wants_write());
            if self.connections.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            for client in self.connections.values_mut() {
                client.connection.advance();
            }
        }
    }
}

impl Client {
    fn update_interest(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        let mut interest = EventSet::empty();
        if self.connection.wants_read() {
            interest |= EventSet::IN;
        }
        if self.connection.wants_write() {
            interest |= EventSet::OUT;
        }
        if interest != self.interest {
            epoll.ctl(
                ControlOperation::Modify,
                self.connection.stream().as_raw_fd(),
                EpollEvent::new(interest, token),
            )?;
            self.interest = interest;
        }
        Ok(())
    }
}
