//! The device: identity, features, configuration, and the handle of a thread per
//! queue.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::config::{BlkConfigSpace, LENGTH};
use super::counters::BlockCounters;
use super::execute::Disk;
use super::image::{FileId, Image, ImageFormat, ImageOptions, ResizeError};
use super::worker::{BlockService, open_ring};
use crate::event::EventSink;
use crate::sandbox::ThreadKind;
use crate::state::{StateError, device_state, from_device_state};
use crate::virtio::rate_limit::{LimitParams, RateLimit};
use crate::virtio::worker::Worker;
use crate::virtio::{
    ActivateError, Activation, DeviceCounters, GuestFaults, VirtioDevice, copy_config,
};

/// What a disk is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskParams {
    /// Where its content is.
    pub image: ImageOptions,
    /// How many queues, each with a thread.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// Serial number; the image's own if absent.
    pub serial: Option<String>,
    /// What limits it.
    pub limit: Option<DiskLimit>,
    /// CPUs of each queue's thread; none binds it to none.
    pub affinity: Vec<Vec<usize>>,
    /// Use io_uring where the host has it.
    pub io_uring: bool,
}

/// What limits a disk's rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskLimit {
    /// A limit of its own.
    Own(LimitParams),
    /// A group of disks that has one together, by name.
    Group(String),
}

/// The control thread's handle of a disk's image.
#[derive(Clone)]
pub struct DiskImage(Arc<Disk>);

impl DiskImage {
    /// Which file it is in.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.0.image.id()
    }

    /// Its format, as it was found.
    #[must_use]
    pub fn format(&self) -> ImageFormat {
        self.0.image.format()
    }

    /// Gives the image another size; the driver is to be told afterwards.
    pub fn change(&self, bytes: u64) -> Result<(), ResizeError> {
        self.0.image.resize(bytes)
    }
}

/// What the driver has set of a disk.
#[derive(Serialize, Deserialize)]
struct BlockState {
    /// It flushes what is to be durable.
    writeback: bool,
}

/// A disk.
pub struct Block {
    disk: Arc<Disk>,
    queue_sizes: Vec<u16>,
    workers: Vec<Worker>,
}

impl Block {
    /// A device called `id` that shows `image`, which is the one that `params` name,
    /// to the guest, limited by `limit`.
    pub fn new(
        id: &str,
        image: Image,
        params: &DiskParams,
        limit: Option<&RateLimit>,
        events: &EventSink,
    ) -> io::Result<Self> {
        let config = BlkConfigSpace::new(&image, params.queues, params.queue_size);
        let serial = params.serial.clone();
        let disk = Arc::new(Disk {
            serial: serial.unwrap_or_else(|| image.serial().to_owned()),
            image,
            config,
            faults: Arc::new(GuestFaults::new(id)),
            counters: Arc::new(BlockCounters::new()),
        });
        let workers = (0..params.queues)
            .map(|queue| {
                let service = BlockService::new(
                    Arc::clone(&disk),
                    limit.cloned(),
                    params
                        .affinity
                        .get(usize::from(queue))
                        .cloned()
                        .unwrap_or_default(),
                    params
                        .io_uring
                        .then(|| open_ring(params.queue_size, &disk))
                        .flatten(),
                );
                let name = format!("{id}_q{queue}");
                let faults = Arc::clone(&disk.faults);
                Worker::spawn(
                    &name,
                    ThreadKind::VirtioBlock,
                    faults,
                    events.clone(),
                    service,
                )
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            disk,
            queue_sizes: vec![params.queue_size; usize::from(params.queues)],
            workers,
        })
    }

    /// The control thread's handle of the image.
    #[must_use]
    pub fn image(&self) -> DiskImage {
        DiskImage(Arc::clone(&self.disk))
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.disk.config.features()
    }

    fn config_length(&self) -> usize {
        LENGTH
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let size = self.disk.image.size();
        copy_config(&self.disk.config.bytes(size), offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.disk.config.write(offset, data);
    }

    fn faults(&self) -> &Arc<GuestFaults> {
        &self.disk.faults
    }

    fn workers(&self) -> &[Worker] {
        &self.workers
    }

    fn save(&self) -> Value {
        device_state(&BlockState {
            writeback: self.disk.config.writeback(),
        })
    }

    fn restore(&mut self, state: &Value) -> Result<(), StateError> {
        let BlockState { writeback } = from_device_state("the disk", state)?;
        self.disk.config.set_writeback(writeback);
        Ok(())
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.disk.config.negotiate(activation.features);
        for (index, worker) in (0u16..).zip(&self.workers) {
            let Some(queue) = activation.take_queue(index) else {
                continue;
            };
            worker.start(Activation {
                memory: Arc::clone(&activation.memory),
                features: activation.features,
                queues: vec![queue],
                interrupt: Arc::clone(&activation.interrupt),
            })?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        Worker::stop_all(&self.workers);
        self.disk.config.reset();
    }

    fn counters(&self) -> Option<Arc<dyn DeviceCounters>> {
        // Without the image: who holds the counters may outlive the device, and
        // the image is locked for as long as it is open.
        Some(Arc::clone(&self.disk.counters) as Arc<dyn DeviceCounters>)
    }
}
