//! What the API thread waits for, and the clients that it serves.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use instrumentation::snapshot::Query;
use rustix::net::sockopt;
use vmm_sys_util::epoll::EventSet;

use super::{ApiContext, Shared};
use crate::api::descriptors::Budget;
use crate::api::http::{CLIENT_TIMEOUT, Connection, Progress, Request, Response};
use crate::api::inspect::Inspector;
use crate::api::queue::{ApiResult, ReplySender};
use crate::api::request::VmAction;
use crate::api::router::{Call, route, route_statistics};
use crate::api::socket::ApiSocket;
use crate::api::{answer, exit_stats};
use crate::log_limit::LogLimit;
use crate::sources::{Sources, io_error};

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

/// Tokens of sources.
pub(super) const LISTENER: u32 = 0;
pub(super) const STATISTICS: u32 = 1;
const WAKE: u32 = 2;
const CLIENT: u32 = 3;

/// Whom an answer is for. Descriptors are used again, serial numbers never are: a
/// late answer cannot reach the wrong client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientId {
    fd: RawFd,
    serial: u64,
}

struct Client {
    connection: Connection,
    serial: u64,
    /// Came by the statistics socket.
    reader: bool,
    interest: EventSet,
}

impl Client {
    fn id(&self) -> ClientId {
        ClientId {
            fd: self.connection.stream().as_raw_fd(),
            serial: self.serial,
        }
    }
}

/// The one subscriber of the API thread's event manager. The thread itself takes it
/// in hand before and after each batch of events, hence the mutex, which nobody else
/// locks.
pub(super) struct EventLoop {
    /// Name of the machine in metrics.
    name: String,
    /// By token.
    listeners: Vec<(u32, ApiSocket)>,
    context: ApiContext,
    inspector: Inspector,
    shared: Arc<Shared>,
    /// By descriptor. One is taken out of what is waited for before it is closed.
    connections: HashMap<RawFd, Client>,
    next_serial: u64,
    /// Requests that came together with earlier ones of the same clients. They
    /// wait for their turn: nobody waits for more than one of each client.
    sent_ahead: VecDeque<(ClientId, Request)>,
    /// How many of them were there when the last wait for events began.
    due: usize,
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
    /// Why the sockets cannot be waited for.
    unheard: Option<io::Error>,
}

/// Serves until it is told to stop.
///
/// # Errors
/// The host does not let the thread wait.
pub(super) fn run(
    manager: &mut EventManager<Arc<Mutex<EventLoop>>>,
    id: SubscriberId,
    event_loop: &Mutex<EventLoop>,
) -> io::Result<()> {
    loop {
        let timeout = lock(event_loop).prepare();
        manager.run_with_timeout(timeout).map_err(io_error)?;
        let mut event_loop = lock(event_loop);
        let mut ops = manager.event_ops(id).map_err(io_error)?;
        event_loop.answer_sent_ahead(&mut ops);
        event_loop.sweep(&mut ops);
        if event_loop.shared.stopping.load(Ordering::Acquire) {
            event_loop.drain_responses(&mut ops);
            return Ok(());
        }
    }
}

pub(super) fn lock(event_loop: &Mutex<EventLoop>) -> MutexGuard<'_, EventLoop> {
    event_loop.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MutEventSubscriber for EventLoop {
    fn init(&mut self, ops: &mut EventOps) {
        let wake = ops.add_source(&self.shared.wake, WAKE);
        let mut sockets = self.listeners.iter();
        let added = wake.and_then(|()| {
            sockets.try_for_each(|(token, socket)| ops.add_source(socket.listener(), *token))
        });
        self.unheard = added.err();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            WAKE => self.deliver_answers(ops),
            listener @ (LISTENER | STATISTICS) => self.accept(listener, ops),
            _ => self.on_connection(events.fd(), events.event_set(), ops),
        }
    }
}

impl EventLoop {
    /// What the thread serves on `listeners`.
    pub(super) fn new(
        listeners: Vec<(u32, ApiSocket)>,
        context: ApiContext,
        inspector: Inspector,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            name: listeners
                .first()
                .map_or_else(String::new, |(_, socket)| socket.name()),
            listeners,
            context,
            inspector,
            shared,
            connections: HashMap::new(),
            next_serial: 0,
            sent_ahead: VecDeque::new(),
            due: 0,
            budget: Budget::new(MAX_DESCRIPTORS),
            next_sweep: None,
            limit: LogLimit::new("api"),
            shared_answers: Vec::new(),
            bodies: exit_stats::BufferPool::default(),
            unheard: None,
        }
    }

    /// Why nobody would be heard, if that is so.
    pub(super) fn take_failure(&mut self) -> Option<io::Error> {
        self.unheard.take()
    }

    /// Before a wait for events: how long it may last, in milliseconds.
    fn prepare(&mut self) -> i32 {
        self.shared_answers.clear();
        self.due = self.sent_ahead.len().min(MAX_TURN);
        self.timeout()
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
    fn sweep(&mut self, ops: &mut EventOps) {
        let now = Instant::now();
        if self.next_sweep.is_some_and(|at| now < at) {
            return;
        }
        let mut any = false;
        let mut over = Vec::new();
        for (&fd, client) in &mut self.connections {
            let Some(deadline) = client.connection.deadline() else {
                continue;
            };
            any = true;
            if now >= deadline && client.connection.expire() == Progress::Done {
                over.push(fd);
            }
        }
        for fd in over {
            self.close(fd, ops);
        }
        self.next_sweep = any.then(|| now + SWEEP_INTERVAL);
    }

    /// Ends a connection.
    fn close(&mut self, fd: RawFd, ops: &mut EventOps) {
        if let Some(client) = self.connections.remove(&fd)
            && let Err(error) = ops.remove_source(client.connection.stream())
        {
            log::error!("a client was not waited for: {error}");
        }
    }

    fn client(&mut self, id: ClientId) -> Option<&mut Client> {
        let client = self.connections.get_mut(&id.fd)?;
        (client.serial == id.serial).then_some(client)
    }

    fn accept(&mut self, listener: u32, ops: &mut EventOps) {
        for _ in 0..MAX_TURN {
            let socket = self.listeners.iter().find(|(token, _)| *token == listener);
            let Some(stream) = socket.and_then(|(_, socket)| socket.listener().accept()) else {
                return;
            };
            if let Err(error) = self.admit(stream, listener == STATISTICS, ops) {
                self.limit
                    .warn(&format_args!("a client cannot be served: {error}"));
            }
        }
    }

    /// Ends the connection of its kind on which nothing was asked for the
    /// longest time, if that is long.
    fn make_room(&mut self, reader: bool, ops: &mut EventOps) -> bool {
        let idle = self
            .connections
            .iter()
            .filter(|(_, client)| client.reader == reader)
            .filter_map(|(&fd, client)| Some((client.connection.idle_since()?, fd)))
            .min();
        match idle {
            Some((since, fd)) if since.elapsed() >= CLIENT_TIMEOUT => {
                self.close(fd, ops);
                true
            }
            _ => false,
        }
    }

    fn admit(
        &mut self,
        mut stream: UnixStream,
        reader: bool,
        ops: &mut EventOps,
    ) -> io::Result<()> {
        // So that an answer leaves in one piece where the kernel allows it. It
        // arrives in any case.
        let _ = sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
        let limit = if reader { MAX_READERS } else { MAX_CONNECTIONS };
        let of_its_kind = |client: &&Client| client.reader == reader;
        let full = self.connections.values().filter(of_its_kind).count() >= limit;
        if full && !self.make_room(reader, ops) {
            let response = Response::error(
                503,
                [
                    "Service Unavailable".to_owned(),
                    format!("{limit} clients are connected already"),
                ],
            );
            return stream.write_all(&response.closing().to_bytes());
        }
        ops.add_source(&stream, CLIENT)?;
        let client = Client {
            connection: Connection::new(stream, self.budget.clone()),
            serial: self.next_serial,
            reader,
            interest: EventSet::IN,
        };
        self.next_serial += 1;
        self.connections.insert(client.id().fd, client);
        Ok(())
    }

    fn on_connection(&mut self, fd: RawFd, events: EventSet, ops: &mut EventOps) {
        let Some(client) = self.connections.get_mut(&fd) else {
            return;
        };
        let id = client.id();
        // Nobody is there to read an answer. Were the client kept until its
        // answer is ready, this event would come again and again.
        let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR)
            && !client.connection.wants_read();
        let progress = if gone {
            Progress::Done
        } else {
            client.connection.advance()
        };
        self.follow(id, progress, true, ops);
    }

    /// Goes on with a connection until it has to wait. A request that follows
    /// on one that is answered here waits for its turn. `may_share` says that
    /// the request had begun to arrive when the last wait for events ended.
    fn follow(
        &mut self,
        id: ClientId,
        mut progress: Progress,
        may_share: bool,
        ops: &mut EventOps,
    ) {
        if let Progress::Request(request) = progress {
            progress = match self.handle(id, &request, may_share) {
                Some(response) => self.respond(id, response),
                None => Progress::Idle,
            };
        }
        if let Progress::Request(request) = progress {
            self.sent_ahead.push_back((id, request));
            progress = Progress::Idle;
        }
        let Some(client) = self.client(id) else {
            return;
        };
        if progress == Progress::Done || client.update_interest(ops).is_err() {
            self.close(id.fd, ops);
        } else if client.connection.deadline().is_some() && self.next_sweep.is_none() {
            self.next_sweep = Some(Instant::now() + SWEEP_INTERVAL);
        }
    }

    fn respond(&mut self, id: ClientId, response: Response) -> Progress {
        match self.client(id) {
            Some(client) => client.connection.respond(response),
            None => Progress::Done,
        }
    }

    /// Answers requests that were sent ahead: as many as were there when the last
    /// wait for events began.
    fn answer_sent_ahead(&mut self, ops: &mut EventOps) {
        for _ in 0..self.due {
            let Some((id, request)) = self.sent_ahead.pop_front() else {
                return;
            };
            if self.client(id).is_some() {
                self.follow(id, Progress::Request(request), true, ops);
            }
        }
    }

    /// Answers at once, or hands the request to the control thread.
    fn handle(&mut self, id: ClientId, request: &Request, may_share: bool) -> Option<Response> {
        let reader = self.client(id).is_some_and(|client| client.reader);
        let context = &self.context;
        let call = match reader {
            true => route_statistics(request),
            false => route(request),
        };
        match call {
            Err(response) => Some(response),
            Ok(Call::Ping) => Some(answer::ping(&context.identity)),
            Ok(Call::Info) => Some(answer::info(&context.board.read())),
            Ok(Call::Counters) => Some(answer::counters(&context.board.read())),
            Ok(Call::Inspect(path)) => {
                self.inspector.read(path, self.deliver(id));
                None
            }
            Ok(Call::ExitStats(query)) => Some(self.exit_stats(Some(query), may_share)),
            Ok(Call::Metrics) => Some(self.exit_stats(None, may_share)),
            Ok(Call::Action { action, failure }) => {
                self.hand_over(id, action, failure);
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

    fn hand_over(&self, id: ClientId, action: VmAction, failure: &'static str) {
        let on_success = answer::empty_reply(&action);
        let deliver = self.deliver(id);
        let deliver = move |outcome: ApiResult| {
            deliver(answer::outcome(outcome, failure, on_success));
        };
        self.context.sender.send(action, ReplySender::new(deliver));
    }

    /// Takes an answer from another thread.
    fn deliver(&self, id: ClientId) -> impl FnOnce(Response) + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move |response| {
            shared
                .answers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((id, response));
            shared.wake();
        }
    }

    fn deliver_answers(&mut self, ops: &mut EventOps) {
        // Nothing to read means that nothing was written: equally quiet.
        let _ = self.shared.wake.read();
        let answers = std::mem::take(
            &mut *self
                .shared
                .answers
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (id, response) in answers {
            if self.client(id).is_some() {
                let progress = self.respond(id, response);
                self.follow(id, progress, false, ops);
            }
        }
    }

    /// Gives clients a moment to take answers that are ready: the one that
    /// asked for the end is among them.
    fn drain_responses(&mut self, ops: &mut EventOps) {
        self.deliver_answers(ops);
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
    fn update_interest(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let mut interest = EventSet::empty();
        if self.connection.wants_read() {
            interest |= EventSet::IN;
        }
        if self.connection.wants_write() {
            interest |= EventSet::OUT;
        }
        if interest != self.interest {
            ops.modify_source(self.connection.stream(), interest, CLIENT)?;
            self.interest = interest;
        }
        Ok(())
    }
}
