//! What runs on the device's thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use event_manager::EventOps;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::timerfd::TimerFd;

use crate::event::{EventSink, MachineEvent};
use crate::sources::Sources;
use crate::virtio::worker::{Service, ServiceError};
use crate::virtio::{Activation, Chain, GuestFaults, QueueError, VirtQueue};

const PINGS: u32 = 0;
const TIMER: u32 = 1;

pub(super) struct WatchdogService {
    faults: Arc<GuestFaults>,
    events: EventSink,
    /// How long the guest may be silent.
    timeout: Duration,
    timer: TimerFd,
    /// The guest has pinged: it is reset when it falls silent.
    armed: Arc<AtomicBool>,
    queue: Option<VirtQueue>,
}

impl WatchdogService {
    pub(super) fn new(
        faults: Arc<GuestFaults>,
        events: EventSink,
        timeout: Duration,
        armed: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        Ok(Self {
            faults,
            events,
            timeout,
            timer: TimerFd::new()?,
            armed,
            queue: None,
        })
    }

    fn set_timer(&mut self) -> io::Result<()> {
        Ok(self.timer.reset(self.timeout, None)?)
    }

    fn clear_timer(&mut self) {
        if let Err(error) = self.timer.clear() {
            log::debug!("cannot stop a timer: {error}");
        }
    }
}

impl Service for WatchdogService {
    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        self.queue = activation.take_queue(0);
        Ok(())
    }

    fn attach(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let Some(queue) = &self.queue else {
            return Ok(());
        };
        queue.listen(ops, PINGS)?;
        ops.add_source(&self.timer, TIMER)?;
        if self.armed.load(Ordering::Relaxed) {
            // It could not ping while it stood still: the time begins anew.
            self.set_timer()?;
        }
        Ok(())
    }

    fn ready(&mut self, token: u32, _ops: &mut EventOps) -> Result<(), ServiceError> {
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
            self.armed.store(true, Ordering::Relaxed);
            self.set_timer()?;
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), ServiceError> {
        self.clear_timer();
        Ok(())
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        self.queue.iter().collect()
    }

    fn stop(&mut self) {
        self.queue = None;
        self.armed.store(false, Ordering::Relaxed);
        self.clear_timer();
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
