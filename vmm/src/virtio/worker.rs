//! The thread of a device. It exists as long as the device does, and serves
//! queues between activation and reset.

use std::error::Error;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel,
};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{ActivateError, Activation, GuestFaults, QueueError, StopFlag};
use crate::event::EventSink;
use crate::sandbox::{ThreadKind, spawn};

/// A thread that has not stopped after this time is named in the log. It is
/// waited for all the same: it may still write to guest memory.
const STOP_WARNING: Duration = Duration::from_secs(2);

/// The device's part of the work. Lives on the thread; what it keeps between
/// activations, such as an open file, it owns.
///
/// A guest decides how much one request asks for. So a service works in pieces
/// of bounded size and time, and looks at the [`StopFlag`] of its queues
/// between them.
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
    Stop(SyncSender<()>),
}

/// The owner's handle of the thread. Dropping it ends the thread.
pub struct Worker {
    name: String,
    stop: StopFlag,
    commands: Option<Sender<Command>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread called `name` that waits for an activation. What goes
    /// wrong is reported to `faults`, those of the whole device.
    pub fn spawn(
        name: &str,
        kind: ThreadKind,
        faults: Arc<GuestFaults>,
        events: EventSink,
        service: impl Service,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (commands, receiver) = channel();
        let stop = StopFlag::default();
        let runner = Runner {
            faults,
            stop: stop.clone(),
            commands: receiver,
            wake: Arc::clone(&wake),
            service,
        };
        let thread = spawn(name, kind, events, move || runner.run())?;
        Ok(Self {
            name: name.to_owned(),
            stop,
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
        if let Some(stopped) = self.request_stop() {
            self.wait_stopped(&stopped);
        }
    }

    /// Has several threads of one device let go of their queues, all at the
    /// same time, and waits until they have.
    pub fn stop_all(workers: &[Worker]) {
        let requested: Vec<_> = workers.iter().map(Worker::request_stop).collect();
        for (worker, stopped) in workers.iter().zip(requested) {
            if let Some(stopped) = stopped {
                worker.wait_stopped(&stopped);
            }
        }
    }

    fn request_stop(&self) -> Option<Receiver<()>> {
        let (reply, stopped) = sync_channel(1);
        self.stop.set();
        self.send(Command::Stop(reply)).map(|()| stopped)
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

    fn send(&self, command: Command) -> Option<()> {
        self.commands.as_ref()?.send(command).ok()?;
        // A full counter wakes as well.
        let _ = self.wake.write(1);
        Some(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.set();
        self.commands = None;
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

struct Runner<S> {
    faults: Arc<GuestFaults>,
    stop: StopFlag,
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
                Command::Stop(reply) => self.stopped(&reply),
                Command::Start(activation) => {
                    let after = self.serve(*activation);
                    self.service.stop();
                    match after {
                        Ok(reply) => self.stopped(&reply),
                        Err(After::Idle) => {}
                        Err(After::End) => return,
                    }
                }
            }
        }
    }

    /// Answers the owner, who starts the thread again only after that.
    fn stopped(&self, reply: &SyncSender<()>) {
        self.stop.clear();
        // The owner may have gone already.
        let _ = reply.send(());
    }

    /// Serves until it is told to stop; gives back whom to tell of that.
    fn serve(&mut self, mut activation: Activation) -> Result<SyncSender<()>, After> {
        let interrupt = Arc::clone(&activation.interrupt);
        for queue in &mut activation.queues {
            queue.set_stop_flag(&self.stop);
        }
        let started = Poll::new(&self.wake)
            .and_then(|poll| self.service.start(activation, &poll).map(|()| poll));
        let poll = match started {
            Ok(poll) => poll,
            Err(error) => {
                self.faults
                    .report_host(&format_args!("cannot start: {error}"));
                interrupt.needs_reset();
                return Err(After::Idle);
            }
        };
        let mut ready = [EpollEvent::default(); 16];
        loop {
            let count = match poll.wait(&mut ready) {
                Ok(count) => count,
                Err(error) => {
                    self.faults
                        .report_host(&format_args!("cannot wait: {error}"));
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
                    self.report(error.as_ref());
                    interrupt.needs_reset();
                    return Err(After::Idle);
                }
            }
        }
    }
}

impl<S> Runner<S> {
    /// A broken queue is the driver's work. Anything else is the host's.
    fn report(&self, error: &(dyn Error + Send + Sync + 'static)) {
        let cause = error.source().map(|cause| format!(": {cause}"));
        let text = format_args!("{error}{}", cause.unwrap_or_default()).to_string();
        if error.is::<QueueError>() {
            self.faults.report(&text);
        } else {
            self.faults
                .report_host(&format_args!("cannot go on: {text}"));
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
        let faults = Arc::new(GuestFaults::new("echo"));
        let worker = Worker::spawn("echo", ThreadKind::VirtioRng, faults, sink, service).unwrap();
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
    fn a_driver_that_starts_a_broken_device_again_and_again_gets_few_lines() {
        let (said, heard) = channel();
        let faults = Arc::new(GuestFaults::new("echo"));
        let service = Echo {
            queue: None,
            said,
            fail: true,
        };
        let sink = EventSink::new(|_| {});
        let kind = ThreadKind::VirtioRng;
        let worker = Worker::spawn("echo", kind, Arc::clone(&faults), sink, service).unwrap();
        for _ in 0..100 {
            let driver = Driver::new(4);
            worker.start(driver.activation()).unwrap();
            driver.kick();
            while heard.recv() != Ok("stop") {}
            worker.stop();
        }
        assert_eq!(faults.lines(), (5, 95));
        // It is the host that failed each time.
        assert_eq!(faults.count(), 0);
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
