//! The common configuration structure (virtio 1.3, 4.1.4.3): what the driver
//! sets up, until the device is activated with it.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::super::super::{DeviceStatus, Transition};
use crate::memory::GuestRam;
use crate::pci::NO_VECTOR;

/// Length of the structure.
pub(super) const LENGTH: usize = 64;
/// Offset of the status, which the device's thread may change.
pub(super) const STATUS: usize = 20;

/// Why a queue cannot be as the driver set it up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    #[error("an area at {0:#x} is misplaced")]
    Area(u64),
    #[error("{0}")]
    Ring(virtio_queue::Error),
}

/// Which queue cannot be as the driver set it up.
#[derive(Debug, thiserror::Error)]
#[error("queue {index}: {source}")]
pub(super) struct QueueSetupError {
    index: u16,
    source: SetupError,
}

/// Why saved registers are none of this device's.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    #[error("a queue of {size} of {max_size} entries, the device's has {own}")]
    QueueSize { size: u16, max_size: u16, own: u16 },
    #[error("{saved} queues, the device has {own}")]
    QueueCount { saved: usize, own: usize },
    #[error("the device lacks the features {0:#x}")]
    MissingFeatures(u64),
    #[error("features {accepted:#x} of {offered:#x}")]
    Features { accepted: u64, offered: u64 },
}

/// What the driver tells of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueSetup {
    max_size: u16,
    size: u16,
    pub(super) vector: u16,
    enabled: bool,
    /// Descriptors, driver area, device area.
    areas: [u64; 3],
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            vector: NO_VECTOR,
            enabled: false,
            areas: [0; 3],
        }
    }

    fn save(&self) -> QueueSetupState {
        let Self {
            max_size,
            size,
            vector,
            enabled,
            areas,
        } = *self;
        QueueSetupState {
            max_size,
            size,
            vector,
            enabled,
            areas,
        }
    }

    fn restore(&mut self, state: &QueueSetupState, vectors: u16) -> Result<(), RestoreError> {
        let QueueSetupState {
            max_size,
            size,
            vector,
            enabled,
            areas,
        } = *state;
        if max_size != self.max_size || !size.is_power_of_two() || size > max_size {
            return Err(RestoreError::QueueSize {
                size,
                max_size,
                own: self.max_size,
            });
        }
        *self = Self {
            max_size,
            size,
            vector: known_vector(vector, vectors),
            enabled,
            areas,
        };
        Ok(())
    }

    /// The queue, if it is enabled and its parts lie in guest memory.
    fn build(&self, memory: &GuestRam, event_idx: bool) -> Result<Queue, SetupError> {
        let [descriptors, driver, device] = self.areas;
        let size = usize::from(self.size);
        let ring = if event_idx { 6 } else { 4 };
        for (area, length, access, alignment) in [
            (descriptors, 16 * size, Permissions::Read, 16),
            (driver, 2 * size + ring, Permissions::Read, 2),
            (device, 8 * size + ring, Permissions::Write, 4),
        ] {
            if area % alignment != 0 || !memory.check_range(GuestAddress(area), length, access) {
                return Err(SetupError::Area(area));
            }
        }
        let mut queue = Queue::new(self.max_size).map_err(SetupError::Ring)?;
        queue.set_size(self.size);
        let halves = |area: u64| (Some(area as u32), Some((area >> 32) as u32));
        let (low, high) = halves(descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(driver);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(device);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }
}

/// What the driver told of a queue, as it is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueSetupState {
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    pub(super) areas: [u64; 3],
}

/// The registers as they are saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CommonState {
    pub(super) offered: u64,
    device_select: u32,
    driver_select: u32,
    pub(super) accepted: u64,
    pub(super) config_vector: u16,
    pub(super) status: u8,
    pub(super) generation: u8,
    queue_select: u16,
    pub(super) queues: Vec<QueueSetupState>,
}

/// A vector that the device has, or none.
fn known_vector(vector: u16, vectors: u16) -> u16 {
    if vector < vectors { vector } else { NO_VECTOR }
}

/// The registers.
pub(super) struct CommonConfig {
    offered: u64,
    device_select: u32,
    driver_select: u32,
    accepted: u64,
    pub(super) config_vector: u16,
    status: DeviceStatus,
    generation: u8,
    queue_select: u16,
    pub(super) queues: Vec<QueueSetup>,
}

impl CommonConfig {
    pub(super) fn new(offered: u64, queue_sizes: &[u16]) -> Self {
        Self {
            offered,
            device_select: 0,
            driver_select: 0,
            accepted: 0,
            config_vector: NO_VECTOR,
            status: DeviceStatus::default(),
            generation: 0,
            queue_select: 0,
            queues: queue_sizes
                .iter()
                .map(|&size| QueueSetup::new(size))
                .collect(),
        }
    }

    /// The registers as they are.
    pub(super) fn save(&self) -> CommonState {
        let Self {
            offered,
            device_select,
            driver_select,
            accepted,
            config_vector,
            status,
            generation,
            queue_select,
            queues,
        } = self;
        CommonState {
            offered: *offered,
            device_select: *device_select,
            driver_select: *driver_select,
            accepted: *accepted,
            config_vector: *config_vector,
            status: status.bits(),
            generation: *generation,
            queue_select: *queue_select,
            queues: queues.iter().map(QueueSetup::save).collect(),
        }
    }

    /// Puts them back, for a device with so many interrupt vectors.
    ///
    /// # Errors
    /// The device offers less than the saved one did, or other queues.
    pub(super) fn restore(
        &mut self,
        state: &CommonState,
        vectors: u16,
    ) -> Result<(), RestoreError> {
        let CommonState {
            offered,
            device_select,
            driver_select,
            accepted,
            config_vector,
            status,
            generation,
            queue_select,
            queues,
        } = state;
        let missing = offered & !self.offered;
        if missing != 0 {
            return Err(RestoreError::MissingFeatures(missing));
        }
        if queues.len() != self.queues.len() {
            return Err(RestoreError::QueueCount {
                saved: queues.len(),
                own: self.queues.len(),
            });
        }
        if accepted & !offered != 0 {
            return Err(RestoreError::Features {
                accepted: *accepted,
                offered: *offered,
            });
        }
        for (setup, state) in self.queues.iter_mut().zip(queues) {
            setup.restore(state, vectors)?;
        }
        self.offered = *offered;
        self.device_select = *device_select;
        self.driver_select = *driver_select;
        self.accepted = *accepted;
        self.config_vector = known_vector(*config_vector, vectors);
        self.status = DeviceStatus::from_bits(*status);
        self.generation = *generation;
        self.queue_select = *queue_select;
        Ok(())
    }

    /// Whether the driver has taken the device into use.
    pub(super) fn is_active(&self) -> bool {
        self.status.is_active()
    }

    /// Forgets what the driver set.
    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        let generation = self.generation;
        *self = Self::new(self.offered, &sizes);
        self.generation = generation;
    }

    /// What both sides agreed on.
    pub(super) fn features(&self) -> u64 {
        self.accepted
    }

    /// The device's configuration has changed.
    pub(super) fn next_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// The queues that the driver enabled, with their numbers.
    pub(super) fn build_queues(
        &self,
        memory: &GuestRam,
    ) -> Result<Vec<(u16, Queue)>, QueueSetupError> {
        let event_idx =
            self.accepted & (1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX) != 0;
        (0u16..)
            .zip(&self.queues)
            .filter(|(_, setup)| setup.enabled)
            .map(|(index, setup)| {
                let queue = setup.build(memory, event_idx);
                let queue = queue.map_err(|source| QueueSetupError { index, source })?;
                Ok((index, queue))
            })
            .collect()
    }

    /// The structure as the driver reads it now.
    pub(super) fn bytes(&self) -> [u8; LENGTH] {
        let half = |word: u64, select: u32| match select {
            0 => word as u32,
            1 => (word >> 32) as u32,
            _ => 0,
        };
        let queue = self.queues.get(usize::from(self.queue_select));
        // A queue that does not exist has no entries.
        let absent = QueueSetup {
            size: 0,
            ..QueueSetup::new(0)
        };
        let queue = queue.unwrap_or(&absent);
        let mut bytes = [0; LENGTH];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.device_select.to_le_bytes());
        put(4, &half(self.offered, self.device_select).to_le_bytes());
        put(8, &self.driver_select.to_le_bytes());
        put(12, &half(self.accepted, self.driver_select).to_le_bytes());
        put(16, &self.config_vector.to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        put(STATUS, &[self.status.bits(), self.generation]);
        put(22, &self.queue_select.to_le_bytes());
        put(24, &queue.size.to_le_bytes());
        put(26, &queue.vector.to_le_bytes());
        put(28, &u16::from(queue.enabled).to_le_bytes());
        // The doorbell's number is the queue's.
        put(30, &self.queue_select.to_le_bytes());
        for (index, area) in queue.areas.iter().enumerate() {
            put(32 + 8 * index, &area.to_le_bytes());
        }
        bytes
    }

    /// A write of the driver's. Registers have a width each; writes of another
    /// one, to a register that cannot be written, or at a time when it has no
    /// meaning, change nothing.
    pub(super) fn write(&mut self, offset: usize, data: &[u8], vectors: u16) -> Transition {
        let vector = |value: u16| known_vector(value, vectors);
        match (offset, data) {
            (0, &[a, b, c, d]) => self.device_select = u32::from_le_bytes([a, b, c, d]),
            (8, &[a, b, c, d]) => self.driver_select = u32::from_le_bytes([a, b, c, d]),
            (12, &[a, b, c, d]) if self.status.negotiating() => {
                let value = u64::from(u32::from_le_bytes([a, b, c, d]));
                match self.driver_select {
                    0 => self.accepted = self.accepted & !0xffff_ffff | value,
                    1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            (16, &[a, b]) => self.config_vector = vector(u16::from_le_bytes([a, b])),
            (STATUS, &[value]) => {
                let possible = self.accepted & !self.offered == 0
                    && self.accepted & (1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1)
                        != 0;
                return self.status.write(value, possible);
            }
            (22, &[a, b]) => self.queue_select = u16::from_le_bytes([a, b]),
            (26, &[a, b]) => {
                if let Some(queue) = self.selected() {
                    queue.vector = vector(u16::from_le_bytes([a, b]));
                }
            }
            (24..64, _) if self.status.configuring() => self.write_queue(offset, data),
            _ => {}
        }
        Transition::None
    }

    fn selected(&mut self) -> Option<&mut QueueSetup> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    fn write_queue(&mut self, offset: usize, data: &[u8]) {
        let Some(queue) = self.selected().filter(|queue| !queue.enabled) else {
            return;
        };
        match (offset, data) {
            (24, &[a, b]) => {
                let size = u16::from_le_bytes([a, b]);
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.size = size;
                }
            }
            (28, &[1, 0]) => queue.enabled = true,
            (32..56, _) => {
                let (index, at) = ((offset - 32) / 8, (offset - 32) % 8);
                if matches!((at, data.len()), (0, 4 | 8) | (4, 4)) {
                    let mut area = queue.areas[index].to_le_bytes();
                    area[at..at + data.len()].copy_from_slice(data);
                    queue.areas[index] = u64::from_le_bytes(area);
                }
            }
            _ => {}
        }
    }
}
