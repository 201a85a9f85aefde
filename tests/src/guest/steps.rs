//! A guest that does to a virtio device what a list of steps says.

use anyhow::Result;

use super::assembled::{STEPS, filled_in};

/// Where the guest keeps its rings and buffers: behind its code, apart.
const TABLE: u32 = 0x20_0000;
const AVAILABLE: u32 = 0x21_0000;
const USED: u32 = 0x22_0000;

// The transport's registers, as its capabilities say.
const DRIVER_SELECT: u32 = 8;
const DRIVER_FEATURES: u32 = 12;
const STATUS: u32 = 20;
const QUEUE_SELECT: u32 = 22;
const QUEUE_SIZE: u32 = 24;
const QUEUE_ENABLE: u32 = 28;
const QUEUE_AREAS: [u32; 3] = [32, 40, 48];
const NOTIFY: u32 = 0x3000;
const NOTIFY_STEP: u32 = 4;

/// Flag of a step whose place is in the device's BAR.
const RELATIVE: u32 = 0x10;

/// What a step does, by its number in the guest.
#[derive(Clone, Copy)]
enum Kind {
    Find = 1,
    Write8,
    Write16,
    Write32,
    Add16,
    Say,
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Where in guest memory.
    pub address: u32,
    /// Its bytes.
    pub length: u32,
    /// The device writes it.
    pub writable: bool,
}

/// A driver of one queue of one virtio device, without any scruples.
#[derive(Clone, Debug)]
pub struct RawDriver {
    words: Vec<u32>,
    queue: u32,
    size: u32,
}

impl RawDriver {
    /// Takes a device of this virtio type into use, with one queue of so many
    /// entries, whose descriptors are then written by [`chain`](Self::chain).
    pub fn new(kind: u32, queue: u32, size: u32) -> Self {
        let mut driver = RawDriver {
            words: Vec::new(),
            queue,
            size,
        };
        driver.step(Kind::Find, 0, (0x1040 + kind) << 16 | 0x1af4);
        for status in [0, 1, 3] {
            driver.register(Kind::Write8, STATUS, status);
        }
        // Version 1, and nothing else.
        for (select, features) in [(0, 0), (1, 1)] {
            driver.register(Kind::Write32, DRIVER_SELECT, select);
            driver.register(Kind::Write32, DRIVER_FEATURES, features);
        }
        driver.register(Kind::Write8, STATUS, 11);
        driver.register(Kind::Write16, QUEUE_SELECT, queue);
        driver.register(Kind::Write16, QUEUE_SIZE, size);
        for (register, area) in QUEUE_AREAS.into_iter().zip([TABLE, AVAILABLE, USED]) {
            driver.register(Kind::Write32, register, area);
            driver.register(Kind::Write32, register + 4, 0);
        }
        driver.register(Kind::Write16, QUEUE_ENABLE, 1);
        driver.register(Kind::Write8, STATUS, 15);
        driver
    }

    /// Writes bytes into memory.
    pub fn put(mut self, address: u32, bytes: &[u8]) -> Self {
        for (at, piece) in (address..).step_by(4).zip(bytes.chunks(4)) {
            let mut word = [0; 4];
            word[..piece.len()].copy_from_slice(piece);
            self.step(Kind::Write32, at, u32::from_le_bytes(word));
        }
        self
    }

    /// A chain of these buffers, whose head is descriptor 0.
    pub fn chain(mut self, buffers: &[Buffer]) -> Self {
        for (number, buffer) in (0u32..).zip(buffers) {
            let is_last = number as usize + 1 == buffers.len();
            let flags = u32::from(!is_last) | u32::from(buffer.writable) << 1;
            let next = if is_last { 0 } else { number + 1 };
            let at = TABLE + 16 * number;
            for (offset, word) in [
                (0, buffer.address),
                (4, 0),
                (8, buffer.length),
                (12, flags | next << 16),
            ] {
                self.step(Kind::Write32, at + offset, word);
            }
        }
        // Every entry of the ring is its head already: whatever the index is.
        for entry in 0..self.size {
            self.step(Kind::Write16, AVAILABLE + 4 + 2 * entry, 0);
        }
        self
    }

    /// Says a byte on the serial port.
    pub fn say(mut self, byte: u8) -> Self {
        self.step(Kind::Say, 0, byte.into());
        self
    }

    /// Offers the head as often as the queue has entries, all at once. The guest's
    /// file.
    pub fn offer(mut self) -> Result<Vec<u8>> {
        self.step(Kind::Add16, AVAILABLE + 2, self.size);
        let doorbell = NOTIFY + NOTIFY_STEP * self.queue;
        self.register(Kind::Write16, doorbell, self.queue);
        filled_in(STEPS, &self.words, &[])
    }

    fn step(&mut self, kind: Kind, place: u32, value: u32) {
        self.words.extend([kind as u32, place, value]);
    }

    fn register(&mut self, kind: Kind, register: u32, value: u32) {
        self.words.extend([kind as u32 | RELATIVE, register, value]);
    }
}
