//! The driver's side of a queue, for tests: well behaved unless told
//! otherwise.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, COMMON_FEATURES, VirtQueue, VirtioDevice, VirtioInterrupt};
use crate::memory::{GuestRam, plain};

pub(crate) const MEMORY: u64 = 16 << 20;
const DESCRIPTORS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x2_0000;
const USED: u64 = 0x3_0000;
/// Distance of two queues' parts.
const QUEUE_STEP: u64 = 0x3_0000;
/// Where buffers lie.
pub(crate) const BUFFERS: u64 = 0x10_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A buffer of a chain; `at` counts from [`BUFFERS`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    at: u64,
    length: u32,
    write: bool,
}

impl Buffer {
    /// One that the device writes to.
    pub(crate) fn writable(at: u64, length: u32) -> Self {
        Self {
            at,
            length,
            write: true,
        }
    }

    /// One that the device reads.
    pub(crate) fn readable(at: u64, length: u32) -> Self {
        Self {
            at,
            length,
            write: false,
        }
    }
}

#[derive(Default)]
struct Interrupts {
    /// Called for each interrupt of a queue.
    hook: OnceLock<Box<dyn Fn() + Send + Sync>>,
    used: AtomicUsize,
    needs_reset: AtomicBool,
}

impl VirtioInterrupt for Interrupts {
    fn queue_used(&self, _: u16) {
        self.used.fetch_add(1, Ordering::SeqCst);
        if let Some(hook) = self.hook.get() {
            hook();
        }
    }
    fn config_changed(&self) {}
    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }
}

/// Has a device serve what the driver offered, and resets it right away: says
/// how long the reset took.
pub(crate) fn reset_at_work(device: &mut dyn VirtioDevice, driver: &Driver) -> Duration {
    device.activate(driver.activation()).unwrap();
    driver.kick();
    // Long enough for the thread to be in the middle of it.
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    device.reset();
    start.elapsed()
}

/// A driver with one queue.
pub(crate) struct Driver {
    memory: Arc<GuestRam>,
    index: u16,
    size: u16,
    next: u16,
    available: u16,
    kick: Arc<EventFd>,
    interrupts: Arc<Interrupts>,
}

impl Driver {
    pub(crate) fn new(size: u16) -> Self {
        Self {
            memory: Arc::new(plain(MEMORY)),
            index: 0,
            size,
            next: 0,
            available: 0,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            interrupts: Arc::default(),
        }
    }

    /// The queue `index` of the same driver, which has five at the most.
    pub(crate) fn beside(&self, index: u16) -> Self {
        assert!(index < 5);
        Self {
            memory: Arc::clone(&self.memory),
            index,
            size: self.size,
            next: 0,
            available: 0,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            interrupts: Arc::clone(&self.interrupts),
        }
    }

    /// A part of this queue, given where that of the first queue lies.
    fn part(&self, first: u64) -> u64 {
        first + u64::from(self.index) * QUEUE_STEP
    }

    pub(crate) fn memory(&self) -> &Arc<GuestRam> {
        &self.memory
    }

    /// The device's end of the queue.
    pub(crate) fn queue(&self) -> VirtQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(self.part(DESCRIPTORS) as u32), None);
        queue.set_avail_ring_address(Some(self.part(AVAILABLE) as u32), None);
        queue.set_used_ring_address(Some(self.part(USED) as u32), None);
        queue.set_ready(true);
        let interrupts = Arc::clone(&self.interrupts) as Arc<dyn VirtioInterrupt>;
        let kick = Arc::clone(&self.kick);
        VirtQueue::new(
            self.index,
            queue,
            Arc::clone(&self.memory),
            kick,
            interrupts,
        )
    }

    pub(crate) fn activation(&self) -> Activation {
        Activation {
            memory: Arc::clone(&self.memory),
            features: COMMON_FEATURES,
            queues: vec![self.queue()],
            interrupt: Arc::clone(&self.interrupts) as Arc<dyn VirtioInterrupt>,
        }
    }

    /// Makes a chain of `buffers` available; says which descriptor is its head.
    pub(crate) fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        // Descriptors are used again when all were used.
        if usize::from(self.next) + buffers.len() > usize::from(self.size) {
            self.next = 0;
        }
        let head = self.next;
        for (index, buffer) in buffers.iter().enumerate() {
            let mut flags = if buffer.write { WRITE } else { 0 };
            if index + 1 < buffers.len() {
                flags |= NEXT;
            }
            self.next += 1;
            let address = BUFFERS + buffer.at;
            self.describe(
                head + index as u16,
                Descriptor::new(address, buffer.length, flags, self.next),
            );
        }
        self.offer_head(head);
        head
    }

    /// Writes a descriptor, sensible or not.
    pub(crate) fn describe(&self, index: u16, descriptor: Descriptor) {
        let at = self.part(DESCRIPTORS) + 16 * u64::from(index);
        self.memory
            .write_obj(RawDescriptor::from(descriptor), GuestAddress(at))
            .unwrap();
    }

    /// Makes a head available, sensible or not.
    pub(crate) fn offer_head(&mut self, head: u16) {
        let at = self.part(AVAILABLE) + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(at)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    /// Makes the first chain available once more.
    pub(crate) fn offer_again(&mut self) {
        self.offer_head(0);
    }

    pub(crate) fn set_available_index(&self, index: u16) {
        self.memory
            .write_obj(index, GuestAddress(self.part(AVAILABLE) + 2))
            .unwrap();
    }

    /// Makes a chain of `count` descriptors available, each of which covers all
    /// of the memory.
    pub(crate) fn offer_everything(&mut self, count: u16, write: bool) -> u16 {
        for index in 0..count {
            let mut flags = if write { WRITE } else { 0 };
            if index + 1 < count {
                flags |= NEXT;
            }
            self.describe(index, Descriptor::new(0, MEMORY as u32, flags, index + 1));
        }
        self.offer_head(0);
        0
    }

    /// Whenever the device uses a chain, makes as many available in the first
    /// `queues` queues as these have entries: those that were offered before,
    /// over and over.
    pub(crate) fn refill_at_once(&self, queues: u16) {
        let (memory, size) = (Arc::clone(&self.memory), self.size);
        let refill = move || {
            for step in (0..queues).map(|queue| u64::from(queue) * QUEUE_STEP) {
                let used: u16 = memory.read_obj(GuestAddress(USED + step + 2)).unwrap();
                let index = used.wrapping_add(size);
                memory
                    .write_obj(index, GuestAddress(AVAILABLE + step + 2))
                    .unwrap();
            }
        };
        assert!(self.interrupts.hook.set(Box::new(refill)).is_ok());
    }

    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// How many chains the device has given back, as a ring counts.
    pub(crate) fn used_index(&self) -> u16 {
        let at = GuestAddress(self.part(USED) + 2);
        self.memory.read_obj(at).unwrap()
    }

    /// Heads and lengths that the device has given back.
    pub(crate) fn used(&self) -> Vec<(u16, u32)> {
        let count: u16 = self
            .memory
            .read_obj(GuestAddress(self.part(USED) + 2))
            .unwrap();
        (0..count)
            .map(|index| {
                let at = self.part(USED) + 4 + 8 * u64::from(index % self.size);
                let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
                (
                    head as u16,
                    self.memory.read_obj(GuestAddress(at + 4)).unwrap(),
                )
            })
            .collect()
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(BUFFERS + at))
            .unwrap();
    }

    pub(crate) fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(BUFFERS + at))
            .unwrap();
        bytes
    }

    pub(crate) fn interrupts(&self) -> usize {
        self.interrupts.used.load(Ordering::SeqCst)
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.interrupts.needs_reset.load(Ordering::SeqCst)
    }
}
