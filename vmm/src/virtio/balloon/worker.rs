//! What runs on the device's thread.

use std::io;
use std::sync::Arc;

use super::request::{Run, listed_pages, reported_pages};
use crate::memory::{self, GuestRam};
use crate::virtio::worker::{Service, ServiceError};
use crate::virtio::{Activation, GuestFaults, QueueError, VirtQueue};
use event_manager::EventOps;

/// What a queue carries; its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Report,
}

const ROLES: [Role; 3] = [Role::Inflate, Role::Deflate, Role::Report];

pub(super) struct BalloonService {
    faults: Arc<GuestFaults>,
    queues: Vec<(Role, VirtQueue)>,
}

impl BalloonService {
    pub(super) fn new(faults: Arc<GuestFaults>) -> Self {
        Self {
            faults,
            queues: Vec::new(),
        }
    }
}

impl Service for BalloonService {
    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        self.queues = (0..)
            .zip(ROLES)
            .filter_map(|(index, role)| Some((role, activation.take_queue(index)?)))
            .collect();
        Ok(())
    }

    fn attach(&mut self, ops: &mut EventOps) -> io::Result<()> {
        self.queues
            .iter()
            .try_for_each(|(_, queue)| queue.listen(ops, u32::from(queue.index())))
    }

    fn ready(&mut self, token: u32, _ops: &mut EventOps) -> Result<(), ServiceError> {
        let queue = self
            .queues
            .iter_mut()
            .find(|(_, queue)| u32::from(queue.index()) == token);
        if let Some((role, queue)) = queue {
            process_queue(*role, queue, &self.faults)?;
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), ServiceError> {
        Ok(())
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        self.queues.iter().map(|(_, queue)| queue).collect()
    }

    fn stop(&mut self) {
        self.queues.clear();
    }
}

/// Serves every request in a queue.
pub(super) fn process_queue(
    role: Role,
    queue: &mut VirtQueue,
    faults: &GuestFaults,
) -> Result<(), QueueError> {
    let memory = Arc::clone(queue.memory());
    let stop = queue.stop_flag().clone();
    queue.drain(|chain| {
        let release = |run: Run| {
            if let Err(error) = release(&memory, run) {
                faults.report(&format_args!("{run:x?} cannot be given back: {error}"));
            }
        };
        match role {
            Role::Inflate => {
                if let Err(error) = listed_pages(chain, &stop, release) {
                    faults.report(&error);
                }
            }
            Role::Report => reported_pages(chain, &stop, release),
            // The host gives a page when the guest touches it.
            Role::Deflate => {}
        }
        0
    })
}

fn release(memory: &GuestRam, run: Run) -> io::Result<()> {
    let length = usize::try_from(run.length).map_err(|_| io::ErrorKind::InvalidInput)?;
    memory::discard(memory, run.start, length)
}
