use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::event::MachineEvent;
use crate::sources::Sources;
use crate::virtio::VirtQueue;
use crate::virtio::testing::{Buffer, Driver};

/// Reports what it is asked for.
struct Echo {
    queue: Option<VirtQueue>,
    said: Sender<&'static str>,
    fail: bool,
}

impl Service for Echo {
    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        self.queue = Some(activation.queues.remove(0));
        Ok(())
    }

    fn attach(&mut self, ops: &mut EventOps) -> io::Result<()> {
        ops.add_source(self.queue.as_ref().unwrap().kick(), 5)?;
        self.said.send("start").map_err(io::Error::other)
    }

    fn ready(&mut self, token: u32, _: &mut EventOps) -> Result<(), ServiceError> {
        assert_eq!(token, 5);
        if self.fail {
            return Err("as wanted".into());
        }
        self.queue.as_mut().unwrap().drain(|_| 0)?;
        Ok(self.said.send("ready")?)
    }

    fn pause(&mut self) -> Result<(), ServiceError> {
        Ok(self.said.send("pause")?)
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        self.queue.iter().collect()
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
fn a_paused_device_keeps_its_queues_and_serves_them_when_it_goes_on() {
    let (worker, heard, _) = worker(false);
    let workers = std::slice::from_ref(&worker);
    let mut driver = Driver::new(4);
    // Before there is anything to pause: what comes then waits.
    Worker::pause_all(workers);
    worker.start(driver.activation()).unwrap();
    Worker::pause_all(workers);
    assert!(heard.try_recv().is_err());
    worker.resume();
    assert_eq!(heard.recv(), Ok("start"));
    for _ in 0..3 {
        Worker::pause_all(workers);
        assert_eq!(heard.try_recv(), Ok("pause"));
        let before = driver.used().len();
        driver.offer(&[Buffer::writable(0, 16)]);
        driver.kick();
        assert!(heard.recv_timeout(Duration::from_millis(20)).is_err());
        assert_eq!(driver.used().len(), before);
        worker.resume();
        assert_eq!((heard.recv(), heard.recv()), (Ok("start"), Ok("ready")));
        assert_eq!(driver.used().len(), before + 1);
    }
    Worker::pause_all(workers);
    worker.stop();
    assert_eq!((heard.recv(), heard.recv()), (Ok("pause"), Ok("stop")));
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

/// Waits for a descriptor that it closes in between.
struct Reopening {
    queue: Option<VirtQueue>,
    other: Option<std::os::unix::net::UnixStream>,
    said: Sender<u32>,
}

impl Service for Reopening {
    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        self.queue = Some(activation.queues.remove(0));
        Ok(())
    }

    fn attach(&mut self, ops: &mut EventOps) -> io::Result<()> {
        ops.add_source(self.queue.as_ref().unwrap().kick(), 1)
    }

    fn pause(&mut self) -> Result<(), ServiceError> {
        Ok(())
    }

    fn ready(&mut self, token: u32, ops: &mut EventOps) -> Result<(), ServiceError> {
        let _ = self.queue.as_ref().unwrap().kick().read();
        if let Some(old) = self.other.take() {
            ops.remove_source(&old)?;
        }
        let (stream, _) = std::os::unix::net::UnixStream::pair()?;
        // Its other end is closed: it is ready at once.
        if token == 1 {
            ops.add_source(&stream, 2)?;
            self.other = Some(stream);
        }
        Ok(self.said.send(token)?)
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        self.queue.iter().collect()
    }

    fn stop(&mut self) {
        // Not taken out by itself: that was done before.
        self.other = None;
        self.queue = None;
    }
}

#[test]
fn a_descriptor_number_that_comes_again_is_waited_for_again() {
    let (said, heard) = channel();
    let service = Reopening {
        queue: None,
        other: None,
        said,
    };
    let faults = Arc::new(GuestFaults::new("a"));
    let sink = EventSink::new(|_| {});
    let worker = Worker::spawn("a", ThreadKind::VirtioRng, faults, sink, service).unwrap();
    for _ in 0..5 {
        let driver = Driver::new(4);
        worker.start(driver.activation()).unwrap();
        for _ in 0..5 {
            driver.kick();
            assert_eq!((heard.recv(), heard.recv()), (Ok(1), Ok(2)));
        }
        worker.stop();
        assert!(!driver.needs_reset());
    }
}

#[test]
fn a_thread_tells_where_it_is_in_its_queues_while_it_serves_and_while_it_stands_still() {
    let (worker, heard, _) = worker(false);
    let probe = worker.probe();
    let soon = || std::time::Instant::now() + Duration::from_secs(10);
    let ask = || {
        probe.ask();
        probe.answer(soon(), || true).unwrap()
    };
    assert_eq!((ask().state, ask().queues.len()), ("idle", 0));
    let mut driver = Driver::new(4);
    worker.start(driver.activation()).unwrap();
    assert_eq!(heard.recv(), Ok("start"));
    let position = |next| QueuePosition {
        index: 0,
        next_available: next,
        next_used: next,
    };
    assert_eq!(ask().queues, [position(0)]);
    driver.offer(&[Buffer::writable(0, 16)]);
    driver.kick();
    assert_eq!(heard.recv(), Ok("ready"));
    let reading = ask();
    assert_eq!(
        (reading.state, &reading.queues[..]),
        ("active", &[position(1)][..])
    );
    Worker::pause_all(std::slice::from_ref(&worker));
    let reading = ask();
    assert_eq!(
        (reading.state, &reading.queues[..]),
        ("paused", &[position(1)][..])
    );
    worker.stop();
    assert_eq!(ask().state, "idle");
    drop(worker);
    probe.ask();
    assert_eq!(probe.answer(soon(), || true), None);
}

#[test]
fn a_thread_that_does_not_answer_is_asked_once() {
    let (said, heard) = channel();
    let (release, hold) = channel::<()>();
    struct Stuck(Sender<()>, Receiver<()>);
    impl Service for Stuck {
        fn activate(&mut self, _: Activation) -> io::Result<()> {
            self.0.send(()).map_err(io::Error::other)?;
            self.1.recv().map_err(io::Error::other)
        }
        fn attach(&mut self, _: &mut EventOps) -> io::Result<()> {
            Ok(())
        }
        fn ready(&mut self, _: u32, _: &mut EventOps) -> Result<(), ServiceError> {
            Ok(())
        }
        fn pause(&mut self) -> Result<(), ServiceError> {
            Ok(())
        }
        fn queues(&self) -> Vec<&VirtQueue> {
            // Each answer is heard.
            let _ = self.0.send(());
            Vec::new()
        }
        fn stop(&mut self) {}
    }
    let faults = Arc::new(GuestFaults::new("a"));
    let sink = EventSink::new(|_| {});
    let service = Stuck(said, hold);
    let worker = Worker::spawn("a", ThreadKind::VirtioRng, faults, sink, service).unwrap();
    let driver = Driver::new(4);
    let probe = worker.probe();
    worker.start(driver.activation()).unwrap();
    heard.recv().unwrap();
    for _ in 0..20 {
        probe.ask();
        let soon = std::time::Instant::now() + Duration::from_millis(2);
        assert_eq!(probe.answer(soon, || true), None);
    }
    release.send(()).unwrap();
    heard.recv().unwrap();
    let late = std::time::Instant::now() + Duration::from_secs(10);
    assert_eq!(probe.answer(late, || true).unwrap().state, "active");
    worker.stop();
    assert!(heard.try_recv().is_err());
}
