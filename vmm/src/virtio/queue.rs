//! A queue as a device sees it: chains in, used buffers out. Wraps the queue
//! of `virtio-queue` so that an empty ring and a broken one look different.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use event_manager::EventOps;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{StopFlag, VirtioInterrupt};
use crate::memory::GuestRam;
use crate::sources::Sources;

// Parts of the rings (virtio 1.3, 2.7.6 and 2.7.8).
const AVAILABLE_HEADER: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;

/// A chain of buffers. Following it ends after as many descriptors as the
/// queue has entries, whatever the driver linked.
pub type Chain = DescriptorChain<Arc<GuestRam>>;

/// The rings cannot be followed any more; only a reset helps.
#[derive(Debug, thiserror::Error)]
#[error("Queue {queue} is broken")]
pub struct QueueError {
    /// Its number.
    pub queue: u16,
    /// What is wrong with it.
    #[source]
    pub source: virtio_queue::Error,
}

/// Where a device is in the rings of a queue. All else of a queue is in the
/// registers that the driver set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePosition {
    /// The queue's number.
    pub index: u16,
    /// Chains taken, as the available ring counts.
    pub next_available: u16,
    /// Chains given back, as the used ring counts.
    pub next_used: u16,
}

/// One queue of an active device. Belongs to the thread that serves it.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    memory: Arc<GuestRam>,
    kick: Arc<EventFd>,
    interrupt: Arc<dyn VirtioInterrupt>,
    /// Chains given back since the driver was last told.
    added: u16,
    stop: StopFlag,
}

impl VirtQueue {
    /// A queue that the driver has set up.
    pub fn new(
        index: u16,
        queue: Queue,
        memory: Arc<GuestRam>,
        kick: Arc<EventFd>,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> Self {
        Self {
            index,
            queue,
            memory,
            kick,
            interrupt,
            added: 0,
            stop: StopFlag::default(),
        }
    }

    /// Makes [`drain`](Self::drain) end early when `stop` is set.
    pub fn set_stop_flag(&mut self, stop: &StopFlag) {
        self.stop = stop.clone();
    }

    /// Set when the queue's thread is to let go of it.
    #[must_use]
    pub fn stop_flag(&self) -> &StopFlag {
        &self.stop
    }

    /// Its number.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// How many entries it has.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Where the device is in the rings.
    #[must_use]
    pub fn position(&self) -> QueuePosition {
        QueuePosition {
            index: self.index,
            next_available: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// Becomes readable when the driver has added buffers. Read it before
    /// looking at the queue.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Has the queue looked at as if the driver had kicked. A counter that is
    /// full kicks as well.
    pub fn kick_again(&self) {
        let _ = self.kick.write(1);
    }

    /// Waits for kicks under `token`. The first comes at once: there may be
    /// buffers already.
    ///
    /// # Errors
    /// The host does not let the event be waited for.
    pub fn listen(&self, ops: &mut EventOps, token: u32) -> io::Result<()> {
        ops.add_source(&*self.kick, token)?;
        self.kick_again();
        Ok(())
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestRam> {
        &self.memory
    }

    /// The next chain, if there is one.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let memory = Arc::clone(&self.memory);
        let chain = self.queue.iter(memory).map(|mut chains| chains.next());
        chain.map_err(|source| self.broken(source))
    }

    /// Makes the chain that was popped last the next one again.
    pub fn push_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back after `written` bytes were written into it. The
    /// driver hears of it with [`notify`](Self::notify).
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        let done = self.queue.add_used(&*self.memory, head, written);
        self.added = self.added.saturating_add(1);
        done.map_err(|source| self.broken(source))
    }

    /// Gives several chains back, each with the number of bytes written into
    /// it. The driver sees all of them at once: one packet may lie in many.
    pub fn complete_together(&mut self, done: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some((&(last_head, last_written), before)) = done.split_last() else {
            return Ok(());
        };
        let ring = GuestAddress(self.queue.used_ring());
        let mut next = self.queue.next_used();
        for &(head, written) in before {
            let offset = USED_HEADER + USED_ELEMENT * u64::from(next % self.size());
            let mut element = [0; USED_ELEMENT as usize];
            element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
            element[4..].copy_from_slice(&written.to_le_bytes());
            let stored = ring
                .checked_add(offset)
                .ok_or(virtio_queue::Error::AddressOverflow)
                .and_then(|place| {
                    let written = self.memory.write_slice(&element, place);
                    written.map_err(virtio_queue::Error::GuestMemory)
                });
            stored.map_err(|source| self.broken(source))?;
            next = next.wrapping_add(1);
            self.added = self.added.saturating_add(1);
        }
        // The index, which the next line moves, is what shows the elements.
        self.queue.set_next_used(next);
        self.complete(last_head, last_written)
    }

    /// Tells the driver of completed chains, unless it does not want to know.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        let added = std::mem::take(&mut self.added);
        if added == 0 {
            return Ok(());
        }
        // The driver's wish is read after it can see the chains; it looks for
        // them after it has changed its wish.
        fence(Ordering::SeqCst);
        let wish = if self.queue.event_idx_enabled() {
            let offset = AVAILABLE_HEADER + AVAILABLE_ELEMENT * u64::from(self.size());
            self.driver_word(offset).map(|event| {
                let behind = self.queue.next_used().wrapping_sub(event);
                behind.wrapping_sub(1) < added
            })
        } else {
            self.driver_word(0)
                .map(|flags| flags & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
        };
        if wish.map_err(|source| self.broken(source))? {
            self.interrupt.queue_used(self.index);
        }
        Ok(())
    }

    /// A word of the part of the queue that the driver writes.
    fn driver_word(&self, offset: u64) -> Result<u16, virtio_queue::Error> {
        let place = GuestAddress(self.queue.avail_ring())
            .checked_add(offset)
            .ok_or(virtio_queue::Error::AddressOverflow)?;
        self.memory
            .load(place, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(virtio_queue::Error::GuestMemory)
    }

    /// Asks the driver not to kick: the queue is being looked at anyway.
    pub fn stop_kicks(&mut self) -> Result<(), QueueError> {
        let done = self.queue.disable_notification(&*self.memory);
        done.map_err(|source| self.broken(source))
    }

    /// Asks for kicks again; true if there are chains already.
    pub fn want_kicks(&mut self) -> Result<bool, QueueError> {
        let more = self.queue.enable_notification(&*self.memory);
        more.map_err(|source| self.broken(source))
    }

    /// Serves what is in the queue: `serve` gets each chain and says how many
    /// bytes it wrote into it. For devices that finish a request at once.
    /// Returns after one round of the ring even if the driver adds chains all
    /// the time, and goes on with the next kick, which it gives itself. Returns
    /// between two chains if the queue is to be let go of.
    pub fn drain(&mut self, mut serve: impl FnMut(&Chain) -> u32) -> Result<(), QueueError> {
        self.drain_while(|chain| Some(serve(chain))).map(drop)
    }

    /// The same for a device that may have to wait for the host: a chain for
    /// which `serve` gives nothing is the next one again, and the result is
    /// false. The driver does not kick then.
    pub fn drain_while(
        &mut self,
        mut serve: impl FnMut(&Chain) -> Option<u32>,
    ) -> Result<bool, QueueError> {
        // Nothing to read: somebody else has looked already.
        let _ = self.kick.read();
        let mut left = self.size();
        loop {
            self.stop_kicks()?;
            while left > 0
                && !self.stop.is_set()
                && let Some(chain) = self.pop()?
            {
                let Some(written) = serve(&chain) else {
                    self.push_back();
                    self.notify()?;
                    return Ok(false);
                };
                self.complete(chain.head_index(), written)?;
                left -= 1;
            }
            self.notify()?;
            if !self.want_kicks()? || self.stop.is_set() {
                return Ok(true);
            }
            if left == 0 {
                self.kick_again();
                return Ok(true);
            }
        }
    }

    fn broken(&self, source: virtio_queue::Error) -> QueueError {
        QueueError {
            queue: self.index,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::virtio::StopFlag;
    use crate::virtio::testing::{Buffer, Driver};

    #[test]
    fn chains_are_served_in_order_and_reported_once() {
        let mut driver = Driver::new(8);
        let heads: Vec<u16> = (0..3)
            .map(|at| driver.offer(&[Buffer::writable(at * 16, 16)]))
            .collect();
        let mut queue = driver.queue();
        let mut seen = Vec::new();
        queue
            .drain(|chain| {
                seen.push(chain.head_index());
                7
            })
            .unwrap();
        assert_eq!(seen, heads);
        let used: Vec<(u16, u32)> = heads.iter().map(|&head| (head, 7)).collect();
        assert_eq!(driver.used(), used);
        assert_eq!(driver.interrupts(), 1);
    }

    #[test]
    fn an_available_index_that_is_ahead_of_the_ring_breaks_the_queue() {
        let driver = Driver::new(8);
        let mut queue = driver.queue();
        driver.set_available_index(9);
        assert!(queue.pop().is_err());
        driver.set_available_index(0);
        assert!(queue.pop().unwrap().is_none());
    }

    #[test]
    fn a_driver_that_never_stops_does_not_keep_the_thread_forever() {
        let mut driver = Driver::new(8);
        for at in 0..8 {
            driver.offer(&[Buffer::writable(at * 16, 16)]);
        }
        let mut queue = driver.queue();
        let mut served = 0;
        queue
            .drain(|_| {
                served += 1;
                driver.offer_again();
                0
            })
            .unwrap();
        assert_eq!(served, 8);
        assert!(queue.kick().read().is_ok());
    }

    #[test]
    fn a_queue_that_is_let_go_of_takes_no_further_chain() {
        let mut driver = Driver::new(8);
        for at in 0..8 {
            driver.offer(&[Buffer::writable(at * 16, 16)]);
        }
        let mut queue = driver.queue();
        let stop = StopFlag::default();
        queue.set_stop_flag(&stop);
        let mut served = 0;
        queue
            .drain(|_| {
                served += 1;
                stop.request_end();
                0
            })
            .unwrap();
        assert_eq!((served, driver.used().len()), (1, 1));
        stop.clear();
        queue.drain(|_| 0).unwrap();
        assert_eq!(driver.used().len(), 8);
    }

    #[test]
    fn chains_that_belong_together_appear_together_and_in_order() {
        let mut driver = Driver::new(4);
        let mut queue = driver.queue();
        for round in 0..5u16 {
            for at in 0..3 {
                driver.offer(&[Buffer::writable(at * 16, 16)]);
            }
            let done: Vec<(u16, u32)> = (0..3u32)
                .map(|length| (queue.pop().unwrap().unwrap().head_index(), length))
                .collect();
            queue.complete_together(&done).unwrap();
            queue.notify().unwrap();
            let used = driver.used();
            assert_eq!(used.len(), 3 * usize::from(round + 1));
            assert_eq!(used[used.len() - 3..], done);
            assert_eq!(driver.interrupts(), usize::from(round + 1));
        }
        queue.complete_together(&[]).unwrap();
        queue.notify().unwrap();
        assert_eq!(driver.interrupts(), 5);
    }

    #[test]
    fn a_chain_that_is_pushed_back_comes_again() {
        let mut driver = Driver::new(8);
        let head = driver.offer(&[Buffer::writable(0, 16)]);
        let mut queue = driver.queue();
        for _ in 0..2 {
            assert_eq!(queue.pop().unwrap().unwrap().head_index(), head);
            queue.push_back();
        }
    }
}
