//! The thread of a device. It exists as long as the device does, and serves
//! queues between activation and reset.

use std::error::Error;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{ActivateError, Activation, GuestFaults};
use crate::event::EventSink;
use crate::sandbox::{ThreadKind, spawn};

/// The device's part of the work. Lives on the thread; what it keeps between
/// activations, such as an open file, it owns.
pub trait Service: Send + 'static {
    /// Takes over queues, and adds to `poll` what it waits for: usually the
    /// kick of each queue, under a token of its own choice.
    fn start(&mut self, activation: Activation, poll: &Poll) -> io::Result<()>;

    /// Something it waits for is ready. An error means that the device cannot
    /// go on: the driver is asked for a reset.
    fn ready(&mut self, token: u64, poll: &Poll) -> Result<(), ServiceError>;

    /// Lets go of the queues; nothing may touch guest memory afterwards.
    fn stop(&mut self);
}

/// Why a service cannot go on.
pub type ServiceError = Box<dyn Error + Send + Sync>;

/// What a thread waits for. Everything in it is gone after a reset.
pub struct Poll(Epoll);

/// The thread's own token.
const COMMAND: u64 = u64::MAX;

impl Poll {
    fn new(wake: &EventFd) -> io::Result<Self> {
        let poll = Self(Epoll::new()?);
        poll.add(wake, COMMAND)?;
        Ok(poll)
    }

    /// Waits for `source` to become readable, too.
    pub fn add(&self, source: &impl AsRawFd, token: u64) -> io::Result<()> {
        self.change(
            ControlOperation::Add,
            source.as_raw_fd(),
            EventSet::IN,
            token,
        )
    }

    /// Changes what is waited for: reading, writing, or nothing for a while.
    pub fn modify(&self, source: &impl AsRawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.change(ControlOperation::Modify, source.as_raw_fd(), events, token)
    }

    /// Waits for `source` no more.
    pub fn remove(&self, source: &impl AsRawFd) -> io::Result<()> {
        self.change(
            ControlOperation::Delete,
            source.as_raw_fd(),
            EventSet::empty(),
            0,
        )
    }

    fn change(
        &self,
        operation: ControlOperation,
        fd: RawFd,
        events: EventSet,
        token: u64,
    ) -> io::Result<()> {
        self.0.ctl(operation, fd, EpollEvent::new(events, token))
    }

    fn wait(&self, ready: &mut [EpollEvent]) -> io::Result<usize> {
        loop {
            match self.0.wait(-1, ready) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

enum Command {
    Start(Box<Activation>),
    Stop(std::sync::mpsc::SyncSender<()>),
}

/// The owner's hold of the thread. Dropping it ends the thread.
pub struct Worker {
    commands: Option<Sender<Command>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread called `name` that waits for an activation.
    pub fn spawn(
        name: &str,
        kind: ThreadKind,
        events: EventSink,
        service: impl Service,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (commands, receiver) = channel();
        let runner = Runner {
            name: name.to_owned(),
            commands: receiver,
            wake: Arc::clone(&wake),
            service,
        };
        let thread = spawn(name, kind, events, move || runner.run())?;
        Ok(Self {
            commands: Some(commands),
            wake,
            thread: Some(thread),
        })
    }

    /// Has the thread serve queues.
    pub fn start(&self, activation: Activation) -> Result<(), ActivateError> {
        self.send(Command::Start(Box::new(activation)))
            .ok_or(ActivateError::ThreadEnded)
    }

    /// Has the thread let go of its queues, and waits until it has.
    pub fn stop(&self) {
        let (reply, done) = sync_channel(1);
        if self.send(Command::Stop(reply)).is_some() {
            // An error means that the thread is gone, and its queues with it.
            let _ = done.recv();
        }
    }

    fn send(&self, command: Command) -> Option<()> {
        self.commands.as_ref()?.send(command).ok()?;
        // A full counter wakes as well.
        let _ = self.wake.write(1);
        Some(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

struct Runner<S> {
    name: String,
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
    service: S,
}

/// What the thread does after an activation has ended.
enum After {
    Idle,
    End,
}

impl<S: Service> Runner<S> {
    fn run(mut self) {
        while let Ok(command) = self.commands.recv() {
            match command {
                // The owner may have gone already.
                Command::Stop(reply) => drop(reply.send(())),
                Command::Start(activation) => {
                    let after = self.serve(*activation);
                    self.service.stop();
                    match after {
                        Ok(reply) => drop(reply.send(())),
                        Err(After::Idle) => {}
                        Err(After::End) => return,
                    }
                }
            }
        }
    }

    /// Serves until it is told to stop; gives back whom to tell of that.
    fn serve(&mut self, activation: Activation) -> Result<std::sync::mpsc::SyncSender<()>, After> {
        let interrupt = Arc::clone(&activation.interrupt);
        let faults = GuestFaults::new(&self.name);
        let started = Poll::new(&self.wake)
            .and_then(|poll| self.service.start(activation, &poll).map(|()| poll));
        let poll = match started {
            Ok(poll) => poll,
            Err(error) => {
                log::error!("{}: cannot start: {error}", self.name);
                interrupt.needs_reset();
                return Err(After::Idle);
            }
        };
        let mut ready = [EpollEvent::default(); 16];
        loop {
            let count = match poll.wait(&mut ready) {
                Ok(count) => count,
                Err(error) => {
                    log::error!("{}: cannot wait: {error}", self.name);
                    interrupt.needs_reset();
                    return Err(After::Idle);
                }
            };
            // Before any work: what comes with a request to stop is not wanted
            // any more.
            if ready[..count].iter().any(|event| event.data() == COMMAND) {
                let _ = self.wake.read();
                match self.commands.try_recv() {
                    Ok(Command::Stop(reply)) => return Ok(reply),
                    // An active device is not activated again.
                    Ok(Command::Start(_)) | Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => return Err(After::End),
                }
            }
            for event in &ready[..count] {
                if event.data() == COMMAND {
                    continue;
                }
                if let Err(error) = self.service.ready(event.data(), &poll) {
                    let cause = error.source().map(ToString::to_string);
                    faults.report(&format!("{error}: {}", cause.unwrap_or_default()));
                    interrupt.needs_reset();
                    return Err(After::Idle);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::event::MachineEvent;
    use crate::virtio::VirtQueue;
    use crate::virtio::testing::{Buffer, Driver};

    /// Reports what it is asked for.
    struct Echo {
        queue: Option<VirtQueue>,
        said: Sender<&'static str>,
        fail: bool,
    }

    impl Service for Echo {
        fn start(&mut self, mut activation: Activation, poll: &Poll) -> io::Result<()> {
            let queue = activation.queues.remove(0);
            poll.add(queue.kick(), 5)?;
            self.queue = Some(queue);
            self.said.send("start").map_err(io::Error::other)
        }

        fn ready(&mut self, token: u64, _: &Poll) -> Result<(), ServiceError> {
            assert_eq!(token, 5);
            if self.fail {
                return Err("as wanted".into());
            }
            self.queue.as_mut().unwrap().drain(|_| 0)?;
            Ok(self.said.send("ready")?)
        }

        fn stop(&mut self) {
            self.queue = None;
            self.said.send("stop").unwrap();
        }
    }

    fn worker(fail: bool) -> (Worker, Receiver<&'static str>, Receiver<MachineEvent>) {
        let (said, heard) = channel();
        let (sender, events) = channel();
        let sink = EventSink::new(move |event| sender.send(event).unwrap());
        let service = Echo {
            queue: None,
            said,
            fail,
        };
        let worker = Worker::spawn("echo", ThreadKind::VirtioRng, sink, service).unwrap();
        (worker, heard, events)
    }

    #[test]
    fn queues_are_served_between_start_and_stop_again_and_again() {
        let (worker, heard, _) = worker(false);
        worker.stop();
        for _ in 0..3 {
            let mut driver = Driver::new(4);
            driver.offer(&[Buffer::writable(0, 16)]);
            worker.start(driver.activation()).unwrap();
            assert_eq!(heard.recv(), Ok("start"));
            driver.kick();
            assert_eq!(heard.recv(), Ok("ready"));
            worker.stop();
            assert_eq!(heard.try_recv(), Ok("stop"));
            assert_eq!(driver.used().len(), 1);
        }
        drop(worker);
        assert!(heard.recv().is_err());
    }

    #[test]
    fn a_failure_asks_for_a_reset_and_the_thread_lives_on() {
        let (worker, heard, events) = worker(true);
        let driver = Driver::new(4);
        worker.start(driver.activation()).unwrap();
        assert_eq!(heard.recv(), Ok("start"));
        driver.kick();
        assert_eq!(heard.recv(), Ok("stop"));
        worker.stop();
        assert!(driver.needs_reset());
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn a_thread_that_panics_ends_the_machine_and_nobody_waits_for_it() {
        let (worker, heard, events) = worker(false);
        drop(heard);
        let driver = Driver::new(4);
        worker.start(driver.activation()).unwrap();
        assert!(matches!(events.recv(), Ok(MachineEvent::Failed(_))));
        worker.stop();
        drop(worker);
    }
}
