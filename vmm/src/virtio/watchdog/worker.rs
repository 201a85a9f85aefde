//! What runs on the device's thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Lets the control thread hold the watchdog while the guest stands still,
/// since it cannot ping then.
#[derive(Debug, Default)]
pub struct WatchdogHold(AtomicU64);

impl WatchdogHold {
    /// Holds the watchdog, or lets it go on.
    pub fn set(&self, held: bool) {
        // Odd while it is held, and never the same again.
        let changed = |count: u64| (count.is_multiple_of(2) == held).then(|| count + 1);
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub(super) struct WatchdogService {
    faults: Arc<GuestFaults>,
    events: EventSink,
    /// How long the guest may be silent.
    timeout: Duration,
    timer: TimerFd,
    hold: Arc<WatchdogHold>,
    /// How often it had been held when the timer was set.
    hold_count: u64,
    queue: Option<VirtQueue>,
}

impl WatchdogService {
    pub(super) fn new(
        faults: Arc<GuestFaults>,
        events: EventSink,
        timeout: Duration,
        hold: Arc<WatchdogHold>,
    ) -> io::Result<Self> {
        Ok(Self {
            faults,
            events,
            timeout,
            timer: TimerFd::new()?,
            hold_count: hold.count(),
            hold,
            queue: None,
        })
    }

    fn set_timer(&mut self) -> io::Result<()> {
        self.hold_count = self.hold.count();
        Ok(self.timer.reset(self.timeout, None)?)
    }
}

impl Service for WatchdogService {
    fn start(&mut self, mut activation: Activation, ops: &mut EventOps) -> io::Result<()> {
        if let Some(queue) = activation.take_queue(0) {
            ops.add_source(queue.kick(), PINGS)?;
            ops.add_source(&self.timer, TIMER)?;
            self.queue = Some(queue);
        }
        Ok(())
    }

    fn ready(&mut self, token: u32, _ops: &mut EventOps) -> Result<(), ServiceError> {
        if token == TIMER {
            let _ = self.timer.wait();
            let count = self.hold.count();
            if !count.is_multiple_of(2) || count != self.hold_count {
                // It stood still for part of the time: the time begins anew.
                self.set_timer()?;
                return Ok(());
            }
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
            self.set_timer()?;
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
