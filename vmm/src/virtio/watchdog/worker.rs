//! What runs on the device's thread.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::timerfd::TimerFd;

use crate::event::{EventSink, MachineEvent};
use crate::virtio::worker::{Poll, Service, ServiceError};
use crate::virtio::{Activation, Chain, GuestFaults, QueueError, VirtQueue};

const PINGS: u64 = 0;
const TIMER: u64 = 1;

pub(super) struct WatchdogService {
    faults: Arc<GuestFaults>,
    events: EventSink,
    /// How long the guest may be silent.
    timeout: Duration,
    timer: TimerFd,
    queue: Option<VirtQueue>,
}

impl WatchdogService {
    pub(super) fn new(
        faults: Arc<GuestFaults>,
        events: EventSink,
        timeout: Duration,
    ) -> io::Result<Self> {
        Ok(Self {
            faults,
            events,
            timeout,
            timer: TimerFd::new()?,
            queue: None,
        })
    }
}

impl Service for WatchdogService {
    fn start(&mut self, mut activation: Activation, poll: &Poll) -> io::Result<()> {
        if let Some(queue) = activation.take_queue(0) {
            poll.add(queue.kick(), PINGS)?;
            poll.add(&self.timer, TIMER)?;
            self.queue = Some(queue);
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, _poll: &Poll) -> Result<(), ServiceError> {
        if token == TIMER {
            let _ = self.timer.wait();
            log::error!(
                "the guest has been silent for {:?}: it is reset",
                self.timeout
            );
            self.events.send(MachineEvent::Reset);
            return Ok(());
        }
        if let Some(queue) = &mut self.queue
            && answer_pings(queue, &self.faults)?
        {
            // Begins with the first ping: a guest without a watchdog program
            // is never reset.
            self.timer.reset(self.timeout, None)?;
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.queue = None;
        if let Err(error) = self.timer.clear() {
            log::debug!("cannot stop a timer: {error}");
        }
    }
}

/// Answers every ping in the queue; says whether there was any.
pub(super) fn answer_pings(
    queue: &mut VirtQueue,
    faults: &GuestFaults,
) -> Result<bool, QueueError> {
    let mut any = false;
    queue.drain(|chain| match answer(chain) {
        Some(length) => {
            any = true;
            length
        }
        None => {
            faults.report(&"A ping without a byte to answer with");
            0
        }
    })?;
    Ok(any)
}

/// The answer to a ping is a one in its first byte.
fn answer(chain: &Chain) -> Option<u32> {
    let buffer = chain.clone().writable().next()?;
    if buffer.len() == 0 {
        return None;
    }
    let place = GuestAddress(buffer.addr().0);
    chain.memory().write_obj(1u8, place).ok()?;
    Some(1)
}
