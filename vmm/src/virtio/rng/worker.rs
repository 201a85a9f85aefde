//! What runs on the device's thread.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use super::request::{RequestError, fill};
use crate::sources::Sources;
use crate::virtio::worker::{Service, ServiceError};
use crate::virtio::{Activation, GuestFaults, QueueError, VirtQueue};
use event_manager::EventOps;

const REQUESTS: u32 = 0;
const SOURCE: u32 = 1;

pub(super) struct RngService {
    source: File,
    faults: Arc<GuestFaults>,
    queue: Option<VirtQueue>,
    /// The next request waits for the source.
    waiting: bool,
}

impl RngService {
    pub(super) fn new(source: File, faults: Arc<GuestFaults>) -> Self {
        Self {
            source,
            faults,
            queue: None,
            waiting: false,
        }
    }
}

impl Service for RngService {
    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        // Without its only queue the device has nothing to do.
        self.queue = activation.take_queue(0);
        Ok(())
    }

    fn attach(&mut self, ops: &mut EventOps) -> io::Result<()> {
        self.queue
            .as_ref()
            .map_or(Ok(()), |queue| queue.listen(ops, REQUESTS))
    }

    fn ready(&mut self, token: u32, ops: &mut EventOps) -> Result<(), ServiceError> {
        let Some(queue) = &mut self.queue else {
            return Ok(());
        };
        if token == SOURCE {
            self.waiting = false;
            ops.remove_source(&self.source)?;
        }
        if self.waiting {
            // The kick is heard again with the source.
            let _ = queue.kick().read();
        } else if !process_queue(queue, &mut self.source, &self.faults)? {
            ops.add_source(&self.source, SOURCE)?;
            self.waiting = true;
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), ServiceError> {
        self.waiting = false;
        Ok(())
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        self.queue.iter().collect()
    }

    fn stop(&mut self) {
        self.queue = None;
        self.waiting = false;
    }
}

/// Fills every request in the queue; false if the source has nothing for the
/// next one yet. One that cannot be filled goes back empty.
pub(super) fn process_queue(
    queue: &mut VirtQueue,
    source: &mut impl Read,
    faults: &GuestFaults,
) -> Result<bool, QueueError> {
    queue.drain_while(|chain| match fill(chain, source) {
        Ok(written) => Some(written),
        Err(RequestError::NotReady) => None,
        Err(error @ RequestError::Source(_)) => {
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            faults.report_host(&format_args!("{error}: {cause}"));
            Some(0)
        }
        Err(error) => {
            faults.report(&error);
            Some(0)
        }
    })
}
