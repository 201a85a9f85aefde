//! What runs on the device's thread.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use super::request::fill;
use crate::virtio::worker::{Poll, Service, ServiceError};
use crate::virtio::{Activation, GuestFaults, QueueError, VirtQueue};

const REQUESTS: u64 = 0;

pub(super) struct RngService {
    source: File,
    faults: Arc<GuestFaults>,
    queue: Option<VirtQueue>,
}

impl RngService {
    pub(super) fn new(source: File, faults: Arc<GuestFaults>) -> Self {
        Self {
            source,
            faults,
            queue: None,
        }
    }
}

impl Service for RngService {
    fn start(&mut self, mut activation: Activation, poll: &Poll) -> io::Result<()> {
        // Without its only queue the device has nothing to do.
        if let Some(queue) = activation.take_queue(0) {
            poll.add(queue.kick(), REQUESTS)?;
            self.queue = Some(queue);
        }
        Ok(())
    }

    fn ready(&mut self, _token: u64, _poll: &Poll) -> Result<(), ServiceError> {
        if let Some(queue) = &mut self.queue {
            process_queue(queue, &mut self.source, &self.faults)?;
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.queue = None;
    }
}

/// Fills every request in the queue. One that cannot be filled goes back empty.
pub(super) fn process_queue(
    queue: &mut VirtQueue,
    source: &mut impl Read,
    faults: &GuestFaults,
) -> Result<(), QueueError> {
    queue.drain(|chain| match fill(chain, source) {
        Ok(written) => written,
        Err(error) => {
            faults.report(&error);
            0
        }
    })
}
