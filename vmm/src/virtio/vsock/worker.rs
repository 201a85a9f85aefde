//! What runs on the device's thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api_client::inspect::InspectNode;
use event_manager::EventOps;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::timerfd::TimerFd;

use super::muxer::{Outgoing, VsockMuxer};
use super::packet::HEADER_LENGTH;
use crate::memory::{IoVecs, IoVecsError};
use crate::sources::Sources;
use crate::virtio::worker::{Service, ServiceError};
use crate::virtio::{Activation, Chain, GuestFaults, VirtQueue};

const TO_GUEST: u32 = 0;
const FROM_GUEST: u32 = 1;
const LISTENER: u32 = 2;
const TIMER: u32 = 3;
const EVENTS: u32 = 4;
/// Connections and pending connects.
pub(super) const FIRST_STREAM: u32 = 16;

/// The guest's packets wait while so many of ours do: each may cause one.
const MAX_BACKLOG: usize = 256;
/// The event that the connections are gone (5.10.6.6.2): its number.
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();
/// Turns of both queues before the thread looks at what else there is: each
/// turn may make room for the next for as long as the guest likes.
const TURNS: usize = 4;
/// How exact deadlines are.
const TICK: Duration = Duration::from_secs(1);

/// Why a chain is no packet, or takes none.
#[derive(Debug, thiserror::Error)]
enum ChainError {
    #[error("A packet with a buffer of the wrong direction")]
    Direction,
    #[error("A packet of {0} bytes has no room for its header")]
    Short(usize),
    #[error(transparent)]
    Scatter(#[from] IoVecsError),
}

pub(super) struct VsockService {
    pub(super) muxer: VsockMuxer,
    pub(super) faults: Arc<GuestFaults>,
    pub(super) timer: TimerFd,
    pub(super) ticking: bool,
    /// The driver has yet to hear that its connections are gone.
    pub(super) restored: Arc<AtomicBool>,
    pub(super) active: Option<Active>,
}

/// What there is between activation and reset.
pub(super) struct Active {
    to_guest: VirtQueue,
    from_guest: VirtQueue,
    /// The standard's third queue carries events; there are none to report as
    /// long as a machine does not move to another host.
    events: Option<VirtQueue>,
    packet: IoVecs,
}

/// Lists the buffers of a packet.
fn gather(chain: &Chain, packet: &mut IoVecs, writable: bool) -> Result<(), ChainError> {
    packet.clear();
    for descriptor in chain.clone() {
        if descriptor.is_write_only() != writable {
            return Err(ChainError::Direction);
        }
        packet.push(descriptor.addr(), descriptor.len() as usize)?;
    }
    match packet.length() {
        length if length < HEADER_LENGTH => Err(ChainError::Short(length)),
        _ => Ok(()),
    }
}

impl VsockService {
    /// Serves both queues until something is missing.
    fn run(&mut self, ops: &mut EventOps) -> Result<(), ServiceError> {
        let mut turns = 0;
        loop {
            self.send(ops)?;
            if !self.receive(ops)? {
                break;
            }
            turns += 1;
            if turns == TURNS {
                if let Some(active) = &self.active {
                    active.from_guest.kick_again();
                }
                break;
            }
        }
        self.muxer.hold_readable(ops);
        self.set_ticking(self.muxer.has_deadlines())?;
        Ok(())
    }

    /// Takes packets from the guest; true if there may be something to send
    /// now.
    fn receive(&mut self, ops: &mut EventOps) -> Result<bool, ServiceError> {
        let Some(active) = &mut self.active else {
            return Ok(false);
        };
        let queue = &mut active.from_guest;
        let mut left = queue.size();
        let mut served = false;
        loop {
            queue.stop_kicks()?;
            while left > 0
                && !queue.stop_flag().is_set()
                && self.muxer.backlog() < MAX_BACKLOG
                && let Some(chain) = queue.pop()?
            {
                match gather(&chain, &mut active.packet, false) {
                    Ok(()) => self.muxer.incoming(&mut active.packet, ops),
                    Err(error) => self.faults.report(&error),
                }
                queue.complete(chain.head_index(), 0)?;
                left -= 1;
                served = true;
            }
            queue.notify()?;
            if self.muxer.backlog() >= MAX_BACKLOG {
                // Goes on when the guest has taken some.
                return Ok(served);
            }
            if !queue.want_kicks()? {
                return Ok(served);
            }
            if queue.stop_flag().is_set() {
                return Ok(false);
            }
            if left == 0 {
                queue.kick_again();
                return Ok(served);
            }
        }
    }

    /// Sends packets to the guest as long as it takes them.
    fn send(&mut self, ops: &mut EventOps) -> Result<(), ServiceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let queue = &mut active.to_guest;
        let mut left = queue.size();
        queue.stop_kicks()?;
        while self.muxer.has_outgoing() {
            if left == 0 || queue.stop_flag().is_set() {
                queue.kick_again();
                break;
            }
            let Some(chain) = queue.pop()? else {
                if queue.want_kicks()? {
                    continue;
                }
                break;
            };
            left -= 1;
            if let Err(error) = gather(&chain, &mut active.packet, true) {
                self.faults.report(&error);
                queue.complete(chain.head_index(), 0)?;
                continue;
            }
            match self.muxer.outgoing(&mut active.packet, ops) {
                Some(Outgoing::Header) => {
                    queue.complete(chain.head_index(), HEADER_LENGTH as u32)?;
                }
                Some(Outgoing::Data(length)) => {
                    queue.complete(chain.head_index(), HEADER_LENGTH as u32 + length)?;
                }
                None => queue.push_back(),
            }
        }
        queue.notify()?;
        Ok(())
    }

    fn is_restored(&self) -> bool {
        self.restored.load(Ordering::Relaxed)
    }

    /// Tells the driver that the connections of before are gone (5.10.6.6.2), as
    /// soon as it has a buffer for that.
    fn report_reset(&mut self, ops: &mut EventOps) -> Result<(), ServiceError> {
        let Some(queue) = self
            .active
            .as_mut()
            .and_then(|active| active.events.as_mut())
        else {
            return Ok(());
        };
        let _ = queue.kick().read();
        let Some(chain) = queue.pop()? else {
            return Ok(());
        };
        let written = match chain.clone().writable().next() {
            Some(buffer) if buffer.len() as usize >= TRANSPORT_RESET.len() => {
                let place = GuestAddress(buffer.addr().0);
                let memory = chain.memory();
                memory.write_slice(&TRANSPORT_RESET, place).is_ok()
            }
            _ => false,
        };
        if !written {
            self.faults
                .report(&"An event buffer without room for an event");
        }
        let length = if written { TRANSPORT_RESET.len() } else { 0 };
        queue.complete(chain.head_index(), length as u32)?;
        queue.notify()?;
        ops.remove_source(queue.kick())?;
        self.restored.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn set_ticking(&mut self, wanted: bool) -> io::Result<()> {
        if wanted != self.ticking {
            self.ticking = wanted;
            if wanted {
                self.timer.reset(TICK, Some(TICK))?;
            } else {
                self.timer.clear()?;
            }
        }
        Ok(())
    }
}

impl Service for VsockService {
    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        let (Some(to_guest), Some(from_guest)) =
            (activation.take_queue(0), activation.take_queue(1))
        else {
            return Ok(());
        };
        self.active = Some(Active {
            to_guest,
            from_guest,
            events: activation.take_queue(2),
            packet: IoVecs::new(activation.memory),
        });
        Ok(())
    }

    fn attach(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        active.to_guest.listen(ops, TO_GUEST)?;
        active.from_guest.listen(ops, FROM_GUEST)?;
        ops.add_source(self.muxer.listener(), LISTENER)?;
        ops.add_source(&self.timer, TIMER)?;
        if self.is_restored()
            && let Some(queue) = &active.events
        {
            queue.listen(ops, EVENTS)?;
        }
        self.muxer.attach(ops);
        Ok(())
    }

    fn ready(&mut self, token: u32, ops: &mut EventOps) -> Result<(), ServiceError> {
        if let Some(active) = &self.active {
            match token {
                // Nothing to read: somebody else has looked already.
                TO_GUEST => drop(active.to_guest.kick().read()),
                FROM_GUEST => drop(active.from_guest.kick().read()),
                EVENTS => self.report_reset(ops)?,
                LISTENER => self.muxer.accept(ops),
                TIMER => {
                    let _ = self.timer.wait();
                    self.muxer.expire(Instant::now(), ops);
                }
                _ => self.muxer.ready(token, ops),
            }
        }
        self.run(ops)
    }

    fn pause(&mut self) -> Result<(), ServiceError> {
        self.muxer.detach();
        Ok(())
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        self.active
            .iter()
            .flat_map(|active| {
                [&active.to_guest, &active.from_guest]
                    .into_iter()
                    .chain(&active.events)
            })
            .collect()
    }

    fn inspect(&self, node: &mut InspectNode) {
        node.set("connections", self.muxer.connections() as u64);
    }

    fn stop(&mut self) {
        self.active = None;
        self.muxer.clear();
        if let Err(error) = self.set_ticking(false) {
            log::debug!("cannot stop a timer: {error}");
        }
    }
}
