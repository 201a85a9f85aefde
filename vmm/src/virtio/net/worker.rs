//! What runs on the thread of a queue pair. The first pair's thread serves the
//! control queue as well.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use event_manager::EventOps;
use vmm_sys_util::epoll::EventSet;

use super::control;
use super::counters::PairCounters;
use super::header::MRG_RXBUF;
use super::receive::{Received, Receiver};
use super::steering::{Steering, TapQueue};
use super::transmit::{Transmitted, Transmitter};
use crate::sources::Sources;
use crate::virtio::rate_limit::RateLimiter;
use crate::virtio::worker::{Service, ServiceError};
use crate::virtio::{Activation, GuestFaults, VirtQueue};

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const CONTROL: u32 = 2;
const TAP: u32 = 3;
const STEERING: u32 = 4;
const RECEIVE_LIMIT: u32 = 5;
const TRANSMIT_LIMIT: u32 = 6;

/// One pair of queues and its end of the cable.
pub(super) struct PairService {
    /// Number of the pair.
    pub(super) pair: usize,
    pub(super) steering: Arc<Steering>,
    pub(super) faults: Arc<GuestFaults>,
    pub(super) counters: Arc<PairCounters>,
    pub(super) receive_limiter: Option<RateLimiter>,
    pub(super) transmit_limiter: Option<RateLimiter>,
    pub(super) active: Option<Active>,
}

/// What there is between activation and reset.
pub(super) struct Active {
    receiver: Receiver,
    transmitter: Transmitter,
    control: Option<VirtQueue>,
    features: u64,
    /// What the receiver and the transmitter wait for.
    receiving: Received,
    transmitting: Transmitted,
    /// What the tap is waited for.
    interest: EventSet,
}

impl PairService {
    fn tap_queue(&self) -> Option<&TapQueue> {
        self.steering.tap_queues().get(self.pair)
    }

    fn receive(&mut self) -> Result<(), ServiceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        // Nothing to read: somebody else has looked already.
        let _ = active.receiver.queue().kick().read();
        if let Some(tap_queue) = self.steering.tap_queues().get(self.pair) {
            active.receiving = active
                .receiver
                .run(tap_queue.tap().as_fd(), &mut self.receive_limiter)?;
        }
        Ok(())
    }

    fn transmit(&mut self) -> Result<(), ServiceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let _ = active.transmitter.queue().kick().read();
        if let Some(tap_queue) = self.steering.tap_queues().get(self.pair) {
            active.transmitting = active
                .transmitter
                .run(tap_queue.tap().as_fd(), &mut self.transmit_limiter)?;
        }
        Ok(())
    }

    fn control(&mut self) -> Result<(), ServiceError> {
        if let Some(active) = &mut self.active
            && let Some(queue) = &mut active.control
        {
            let execute = control::executor(&self.steering, active.features);
            control::process_queue(queue, &self.faults, execute)?;
        }
        Ok(())
    }

    /// The tap queue was attached or detached.
    fn steered(&mut self) {
        if let Some(tap_queue) = self.tap_queue() {
            let _ = tap_queue.changed().read();
        }
        let used = self.steering.uses(self.pair);
        if let Some(active) = &mut self.active {
            match (used, active.receiving) {
                (true, Received::Detached) => active.receiving = Received::NoPacket,
                (false, _) => active.receiving = Received::Detached,
                _ => {}
            }
        }
    }

    /// Waits for the tap if there is something to wait for. A tap that is not
    /// attached is always ready, with an error, so it must not be waited for.
    /// Where the host refuses to wait, the next event tries again.
    fn update_interest(&mut self, ops: &mut EventOps) {
        let Some(active) = &mut self.active else {
            return;
        };
        let mut wanted = EventSet::empty();
        if active.receiving == Received::NoPacket {
            wanted |= EventSet::IN;
        }
        if active.transmitting == Transmitted::TapFull {
            wanted |= EventSet::OUT;
        }
        if active.receiving == Received::Detached {
            wanted = EventSet::empty();
        }
        let before = active.interest;
        let Some(tap_queue) = self.steering.tap_queues().get(self.pair) else {
            return;
        };
        let updated = match (before.is_empty(), wanted.is_empty()) {
            (true, false) => ops
                .add_source(tap_queue.tap(), TAP)
                .and_then(|()| match wanted {
                    EventSet::IN => Ok(()),
                    _ => ops.modify_source(tap_queue.tap(), wanted, TAP),
                }),
            (false, true) => ops.remove_source(tap_queue.tap()),
            (false, false) if before != wanted => ops.modify_source(tap_queue.tap(), wanted, TAP),
            _ => Ok(()),
        };
        match updated {
            Ok(()) => active.interest = wanted,
            Err(error) => self
                .faults
                .report_host(&format_args!("the tap cannot be waited for: {error}")),
        }
    }
}

impl Service for PairService {
    /// The activation has this pair's queues only: receive, transmit, and in
    /// the first pair possibly control.
    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        let mut queues = activation.queues.drain(..);
        let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
            return Ok(());
        };
        let control = queues.next();
        drop(queues);
        let mergeable = activation.features & MRG_RXBUF != 0;
        let (faults, counters) = (&self.faults, &self.counters);
        self.active = Some(Active {
            receiver: Receiver::new(receive, mergeable, Arc::clone(faults), Arc::clone(counters)),
            transmitter: Transmitter::new(transmit, Arc::clone(faults), Arc::clone(counters)),
            control,
            features: activation.features,
            receiving: Received::NoPacket,
            transmitting: Transmitted::NoPacket,
            interest: EventSet::empty(),
        });
        Ok(())
    }

    fn attach(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        active.receiver.queue().listen(ops, RECEIVE)?;
        active.transmitter.queue().listen(ops, TRANSMIT)?;
        if let Some(control) = &active.control {
            control.listen(ops, CONTROL)?;
        }
        if let Some(tap_queue) = self.tap_queue() {
            ops.add_source(tap_queue.changed(), STEERING)?;
        }
        if let Some(limiter) = &self.receive_limiter {
            ops.add_source(limiter, RECEIVE_LIMIT)?;
        }
        if let Some(limiter) = &self.transmit_limiter {
            ops.add_source(limiter, TRANSMIT_LIMIT)?;
        }
        self.steered();
        self.update_interest(ops);
        Ok(())
    }

    fn ready(&mut self, token: u32, ops: &mut EventOps) -> Result<(), ServiceError> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        let (receiving, transmitting) = (active.receiving, active.transmitting);
        match token {
            RECEIVE => match receiving {
                // Detached or limited, more buffers change nothing.
                Received::NoBuffers => self.receive()?,
                _ => drop(active.receiver.queue().kick().read()),
            },
            TRANSMIT => match transmitting {
                Transmitted::NoPacket => self.transmit()?,
                _ => drop(active.transmitter.queue().kick().read()),
            },
            TAP => {
                if transmitting == Transmitted::TapFull {
                    self.transmit()?;
                }
                if receiving == Received::NoPacket {
                    self.receive()?;
                }
            }
            CONTROL => self.control()?,
            STEERING => self.steered(),
            RECEIVE_LIMIT => {
                if let Some(limiter) = &mut self.receive_limiter {
                    limiter.resume();
                }
                if receiving == Received::Limited {
                    self.receive()?;
                }
            }
            TRANSMIT_LIMIT => {
                if let Some(limiter) = &mut self.transmit_limiter {
                    limiter.resume();
                }
                if transmitting == Transmitted::Limited {
                    self.transmit()?;
                }
            }
            _ => {}
        }
        self.update_interest(ops);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), ServiceError> {
        if let Some(active) = &mut self.active {
            active.receiver.put_back();
            // Both are tried again when the tap or the driver says so.
            active.receiving = Received::NoPacket;
            active.transmitting = Transmitted::NoPacket;
            active.interest = EventSet::empty();
        }
        Ok(())
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        self.active
            .iter()
            .flat_map(|active| {
                [active.receiver.queue(), active.transmitter.queue()]
                    .into_iter()
                    .chain(&active.control)
            })
            .collect()
    }

    fn stop(&mut self) {
        self.active = None;
    }
}
