//! What the control thread waits for.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};

use super::{ControlError, Vmm};
use crate::api::{ApiQueue, RequestHandler, StatusBoard};
use crate::monitor::Source;
use crate::sources::{Sources, io_error};

/// How the control thread's work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The guest switched itself off.
    PowerOff,
    /// A client asked for the end.
    Request,
    /// A signal did.
    Signal,
}

/// What becomes readable when a signal came.
pub struct Signals {
    /// The process is to end.
    pub end: UnixStream,
    /// The terminal has another size. Reading it does not block.
    pub window: UnixStream,
}

const API: u32 = 0;
const EVENTS: u32 = 1;
const END: u32 = 2;
const WINDOW: u32 = 3;
/// Sources that are served at a time: all there are.
const BATCH: usize = 4;

impl Vmm {
    /// Works until the guest, a client or a signal ends it.
    ///
    /// # Errors
    /// The machine failed, or the host does not let the thread wait.
    pub fn run(
        &mut self,
        requests: &ApiQueue,
        board: &StatusBoard,
        signals: &Signals,
    ) -> Result<Ended, ControlError> {
        let set_up = |error| ControlError::SetUp(io_error(error));
        let mut manager = EventManager::new_with_capacity(BATCH).map_err(set_up)?;
        let id = manager.add_subscriber(ControlLoop {
            vmm: self,
            requests,
            board,
            signals,
            failure: None,
        });
        loop {
            let control = manager.subscriber_mut(id).map_err(set_up)?;
            if let Some(outcome) = control.outcome() {
                return outcome;
            }
            manager.run().map_err(set_up)?;
        }
    }
}

/// The control thread's part of the event manager.
struct ControlLoop<'a> {
    vmm: &'a mut Vmm,
    requests: &'a ApiQueue,
    board: &'a StatusBoard,
    signals: &'a Signals,
    /// Why the thread has to end.
    failure: Option<ControlError>,
}

impl ControlLoop<'_> {
    fn add_sources(&self, ops: &mut EventOps) -> io::Result<()> {
        ops.add_source(self.requests, API)?;
        ops.add_source(&*self.vmm.queue.wake, EVENTS)?;
        ops.add_source(&self.signals.end, END)?;
        ops.add_source(&self.signals.window, WINDOW)
    }

    fn ready(&mut self, token: u32) -> Result<(), ControlError> {
        match token {
            API => self.requests.serve(self.vmm, self.board),
            EVENTS => {
                self.board.set_busy(Some("the guest's events"));
                self.vmm.handle_vm_events()?;
                self.board.publish(self.vmm.status());
                self.board.set_busy(None);
            }
            WINDOW => {
                // How often it came does not matter.
                let _ = (&self.signals.window).read(&mut [0; 64]);
                if let Some(machine) = &self.vmm.machine {
                    machine.devices().resize_console();
                }
            }
            _ => self.vmm.ended = Some(Ended::Signal),
        }
        Ok(())
    }

    /// How the work ended, once it has. The machine has ended then, too.
    fn outcome(&mut self) -> Option<Result<Ended, ControlError>> {
        if let Some(error) = self.failure.take().or_else(|| self.vmm.failed.take()) {
            return Some(Err(error));
        }
        let ended = self.vmm.ended?;
        Some(self.vmm.delete().map(|()| {
            self.vmm.emit(Source::Vmm, "shutdown");
            ended
        }))
    }
}

impl MutEventSubscriber for ControlLoop<'_> {
    fn init(&mut self, ops: &mut EventOps) {
        self.failure = self.add_sources(ops).err().map(ControlError::SetUp);
        self.board.publish(self.vmm.status());
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        // The rest of the batch is nobody's any more.
        if self.failure.is_none() {
            self.failure = self.ready(events.data()).err();
        }
    }
}
