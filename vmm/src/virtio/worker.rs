//! The thread of a device. It exists as long as the device does, and serves
//! queues between activation and reset, unless it is paused.
//!
//! The thread runs an [`EventManager`]. While the device is active the service
//! is its one subscriber, which [`Worker`] adds and removes from other threads;
//! otherwise the service waits in a [`Slot`], with its queues if it is paused.
//! It never leaves the thread: what it owns is closed and removed there, under
//! the thread's filter of system calls.

mod probe;

use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use api_client::inspect::InspectNode;
use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};

use super::{
    ActivateError, Activation, GuestFaults, QueueError, QueuePosition, StopFlag, VirtQueue,
    VirtioInterrupt,
};
use crate::event::EventSink;
use crate::sandbox::{ThreadKind, spawn};
use crate::sources::io_error;

pub use probe::{WorkerProbe, WorkerReading};

/// A thread that has not stopped after this time is named in the log. It is
/// waited for all the same: it may still write to guest memory.
const STOP_WARNING: Duration = Duration::from_secs(2);
/// Sources that are served before requests to stop are looked at.
const BATCH: usize = 16;

/// The device's part of the work. Lives on the thread; what it keeps between
/// activations, such as an open file, it owns.
///
/// ```text
///            activate         attach
///   idle ──────────► paused ─────────► active ──► ready, ready, ...
///     ▲                │ ▲    pause      │
///     │      stop      │ └───────────────┤
///     └────────────────┴─────────────────┘
/// ```
///
/// A guest decides how much one request asks for. So a service works in pieces
/// of bounded size and time, and looks at the [`StopFlag`] of its queues
/// between them.
pub trait Service: Send + 'static {
    /// Takes over queues, and does not touch them yet.
    ///
    /// # Errors
    /// The host does not give what it needs: the driver is asked for a reset.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;

    /// Begins to serve the queues, or goes on: adds to `ops` what it waits for,
    /// under tokens of its own choice, and looks for what has come meanwhile.
    ///
    /// # Errors
    /// The host does not give what it needs: the driver is asked for a reset.
    fn attach(&mut self, ops: &mut EventOps) -> io::Result<()>;

    /// Something it waits for is ready.
    ///
    /// # Errors
    /// The device cannot go on: the driver is asked for a reset.
    fn ready(&mut self, token: u32, ops: &mut EventOps) -> Result<(), ServiceError>;

    /// Finishes the requests that are under way or puts them back into their
    /// queues, and keeps the queues; nothing may touch guest memory until
    /// [`attach`](Self::attach). What it waits for has been taken out already.
    ///
    /// # Errors
    /// The device cannot go on: the driver is asked for a reset.
    fn pause(&mut self) -> Result<(), ServiceError>;

    /// The queues that it has taken over and not let go of.
    fn queues(&self) -> Vec<&VirtQueue>;

    /// Lets go of the queues; nothing may touch guest memory afterwards. What
    /// it waits for has been taken out already.
    fn stop(&mut self);

    /// Says what it is about at the moment, beside its queues. Touches no guest
    /// memory.
    fn inspect(&self, _node: &mut InspectNode) {}
}

/// Why a service cannot go on.
pub type ServiceError = Box<dyn Error + Send + Sync>;

/// Where the service is. Only the thread changes it.
enum Slot {
    /// Here: the device is not active.
    Idle(Box<dyn Service>),
    /// Here, with its queues.
    Paused(ActiveService),
    /// With the event manager.
    Active(SubscriberId),
    /// Gone: the thread ends.
    Empty,
}

/// What the thread and its owner's requests share.
struct Shared {
    slot: Slot,
    /// A device that becomes active waits for [`Worker::resume`].
    paused: bool,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The owner's handle of the thread. Dropping it ends the thread.
pub struct Worker {
    name: String,
    faults: Arc<GuestFaults>,
    stop: StopFlag,
    shared: Arc<Mutex<Shared>>,
    endpoint: RemoteEndpoint<ActiveService>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

type Ops<'a> = dyn SubscriberOps<Subscriber = ActiveService> + 'a;

impl Worker {
    /// Starts a thread called `name` that waits for an activation. What goes
    /// wrong is reported to `faults`, those of the whole device.
    ///
    /// # Errors
    /// The host gives no thread or descriptor.
    pub fn spawn(
        name: &str,
        kind: ThreadKind,
        faults: Arc<GuestFaults>,
        events: EventSink,
        service: impl Service,
    ) -> io::Result<Self> {
        let mut manager = EventManager::new_with_capacity(BATCH).map_err(io_error)?;
        let endpoint = manager.remote_endpoint();
        let shared = Arc::new(Mutex::new(Shared {
            slot: Slot::Idle(Box::new(service)),
            paused: false,
        }));
        let ended = Arc::new(AtomicBool::new(false));
        let (held, end, log) = (Arc::clone(&shared), Arc::clone(&ended), Arc::clone(&faults));
        let thread = spawn(name, kind, events, move || {
            while !end.load(Ordering::Relaxed) {
                if let Err(error) = manager.run() {
                    log.report_host(&format_args!("cannot wait: {error}"));
                    break;
                }
            }
            let mut shared = lock(&held);
            stop_service(&mut manager, &mut shared);
            // Dropped here and not with the owner.
            shared.slot = Slot::Empty;
        })?;
        Ok(Self {
            name: name.to_owned(),
            faults,
            stop: StopFlag::default(),
            shared,
            endpoint,
            ended,
            thread: Some(thread),
        })
    }

    /// Has the thread serve queues, once it is not paused.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn start(&self, mut activation: Activation) -> Result<(), ActivateError> {
        for queue in &mut activation.queues {
            queue.set_stop_flag(&self.stop);
        }
        let shared = Arc::clone(&self.shared);
        let (faults, stop) = (Arc::clone(&self.faults), self.stop.clone());
        self.endpoint
            .fire(move |ops: &mut Ops| {
                let mut shared = lock(&shared);
                let service = match std::mem::replace(&mut shared.slot, Slot::Empty) {
                    Slot::Idle(service) => service,
                    // An active device is not activated again.
                    other => return shared.slot = other,
                };
                let mut active = ActiveService {
                    service,
                    interrupt: Arc::clone(&activation.interrupt),
                    faults,
                    stop,
                    failed: false,
                };
                if let Err(error) = active.service.activate(activation) {
                    active.fail(&error);
                }
                shared.slot = match shared.paused {
                    true => Slot::Paused(active),
                    false => Slot::Active(ops.add_subscriber(active)),
                };
            })
            .map_err(|_| ActivateError::ThreadEnded)
    }

    /// Has several threads of one device leave guest memory alone, all at the
    /// same time, and waits until they do. They keep their queues.
    pub fn pause_all(workers: &[Worker]) {
        Self::stop_together(workers, |worker| {
            worker.stop.request_pause();
            worker.request_stop(|ops, shared| {
                shared.paused = true;
                pause_service(ops, shared);
            })
        });
    }

    /// Undoes [`pause_all`](Self::pause_all). A thread that has ended stays so.
    pub fn resume(&self) {
        let shared = Arc::clone(&self.shared);
        let _ = self.endpoint.fire(move |ops: &mut Ops| {
            let mut shared = lock(&shared);
            shared.paused = false;
            shared.slot = match std::mem::replace(&mut shared.slot, Slot::Empty) {
                Slot::Paused(active) => Slot::Active(ops.add_subscriber(active)),
                other => other,
            };
        });
    }

    /// Where the thread is in its queues, while it is paused.
    #[must_use]
    pub fn positions(&self) -> Vec<QueuePosition> {
        match &lock(&self.shared).slot {
            Slot::Paused(active) if !active.failed => active
                .service
                .queues()
                .into_iter()
                .map(VirtQueue::position)
                .collect(),
            _ => Vec::new(),
        }
    }

    /// A way to ask the thread what it is about.
    #[must_use]
    pub fn probe(&self) -> WorkerProbe {
        WorkerProbe::new(&self.name, &self.endpoint, &self.shared)
    }

    /// Has the thread let go of its queues, and waits until it has.
    pub fn stop(&self) {
        Self::stop_all(std::slice::from_ref(self));
    }

    /// Has several threads of one device let go of their queues, all at the
    /// same time, and waits until they have.
    pub fn stop_all(workers: &[Worker]) {
        Self::stop_together(workers, |worker| {
            worker.stop.request_end();
            worker.request_stop(stop_service)
        });
    }

    fn stop_together(workers: &[Worker], request: impl Fn(&Worker) -> Option<Receiver<()>>) {
        let requested: Vec<_> = workers.iter().map(request).collect();
        for (worker, stopped) in workers.iter().zip(requested) {
            if let Some(stopped) = stopped {
                worker.wait_stopped(&stopped);
            }
        }
    }

    fn request_stop(&self, how: fn(&mut Ops, &mut Shared)) -> Option<Receiver<()>> {
        let (reply, stopped): (SyncSender<()>, _) = sync_channel(1);
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
        let fired = self.endpoint.fire(move |ops: &mut Ops| {
            how(ops, &mut lock(&shared));
            stop.clear();
            // The owner may have gone already.
            let _ = reply.send(());
        });
        fired.ok().map(|()| stopped)
    }

    /// Waits without a limit: nobody may use the queues before the thread has
    /// let go of them. What limits the end of a VM is the deadline of its
    /// shutdown, which ends the process.
    fn wait_stopped(&self, stopped: &Receiver<()>) {
        if let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(STOP_WARNING) {
            log::warn!("{}: has not stopped within {STOP_WARNING:?}", self.name);
            // An error means that the thread is gone, and its queues with it.
            let _ = stopped.recv();
        }
    }
}

/// Takes the service back from the event manager, with its queues.
fn pause_service(ops: &mut Ops, shared: &mut Shared) {
    if let Slot::Active(id) = shared.slot
        && let Ok(mut active) = ops.remove_subscriber(id)
    {
        if !active.failed
            && let Err(error) = active.service.pause()
        {
            active.fail(error.as_ref());
        }
        shared.slot = Slot::Paused(active);
    }
}

/// Takes the service back from the event manager, without its queues.
fn stop_service(ops: &mut Ops, shared: &mut Shared) {
    let mut active = match std::mem::replace(&mut shared.slot, Slot::Empty) {
        Slot::Active(id) => match ops.remove_subscriber(id) {
            Ok(active) => active,
            // It is known for as long as the slot names it.
            Err(_) => return,
        },
        Slot::Paused(active) => active,
        other => return shared.slot = other,
    };
    // One that failed has let go of its queues already.
    if !active.failed {
        active.service.stop();
    }
    shared.slot = Slot::Idle(active.service);
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.request_end();
        self.ended.store(true, Ordering::Relaxed);
        // Fails if the thread is gone.
        let _ = self.endpoint.kick();
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// A service with queues, as the event manager's subscriber.
struct ActiveService {
    service: Box<dyn Service>,
    interrupt: Arc<dyn VirtioInterrupt>,
    faults: Arc<GuestFaults>,
    stop: StopFlag,
    /// It has let go of its queues and waits for a reset.
    failed: bool,
}

impl ActiveService {
    /// A broken queue is the driver's work. Anything else is the host's.
    fn fail(&mut self, error: &(dyn Error + 'static)) {
        let cause = error.source().map(|cause| format!(": {cause}"));
        let text = format!("{error}{}", cause.unwrap_or_default());
        if error.is::<QueueError>() {
            self.faults.report(&text);
        } else {
            self.faults
                .report_host(&format_args!("cannot go on: {text}"));
        }
        self.service.stop();
        self.failed = true;
        self.interrupt.needs_reset();
    }
}

impl MutEventSubscriber for ActiveService {
    fn init(&mut self, ops: &mut EventOps) {
        if !self.failed
            && let Err(error) = self.service.attach(ops)
        {
            self.fail(&error);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.failed {
            // Or it would be ready again at once.
            let _ = ops.remove(events);
            return;
        }
        // What comes with a request to stop is not wanted any more.
        if self.stop.is_set() {
            return;
        }
        if let Err(error) = self.service.ready(events.data(), ops) {
            self.fail(error.as_ref());
        }
    }
}

#[cfg(test)]
mod tests;
