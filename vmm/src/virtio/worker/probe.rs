//! A look at what a device's thread is about, which the thread itself answers.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use api_client::inspect::InspectNode;
use event_manager::RemoteEndpoint;

use super::{ActiveService, Ops, Shared, Slot, lock};
use crate::inspect::Question;
use crate::virtio::{QueuePosition, VirtQueue};

/// What a thread says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerReading {
    /// `idle`, `active`, `paused` or `failed`.
    pub state: &'static str,
    /// Where it is in the queues that it has.
    pub queues: Vec<QueuePosition>,
    /// What else the service says.
    pub more: InspectNode,
}

/// The way to ask a thread. It does not keep the thread.
pub struct WorkerProbe {
    name: String,
    endpoint: RemoteEndpoint<ActiveService>,
    shared: Arc<Mutex<Shared>>,
    question: Arc<Question<WorkerReading>>,
}

impl WorkerProbe {
    pub(super) fn new(
        name: &str,
        endpoint: &RemoteEndpoint<ActiveService>,
        shared: &Arc<Mutex<Shared>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            endpoint: endpoint.clone(),
            shared: Arc::clone(shared),
            question: Arc::default(),
        }
    }

    /// The thread's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks the thread, and does not wait.
    pub fn ask(&self) {
        if !self.question.ask() {
            return;
        }
        let (shared, question) = (Arc::clone(&self.shared), Arc::clone(&self.question));
        let fired = self.endpoint.fire(move |ops: &mut Ops| {
            question.answer(Some(read(ops, &lock(&shared).slot)));
        });
        if fired.is_err() {
            self.question.answer(None);
        }
    }

    /// The answer, if it comes before `deadline` and as long as it is `wanted`.
    pub fn answer(&self, deadline: Instant, wanted: impl Fn() -> bool) -> Option<WorkerReading> {
        self.question.wait(deadline, wanted)
    }
}

fn read(ops: &mut Ops, slot: &Slot) -> WorkerReading {
    let of = |state, active: &ActiveService| {
        let mut more = InspectNode::default();
        active.service.inspect(&mut more);
        let queues = active.service.queues().into_iter();
        WorkerReading {
            state: if active.failed { "failed" } else { state },
            queues: queues.map(VirtQueue::position).collect(),
            more,
        }
    };
    match slot {
        Slot::Active(id) => match ops.subscriber_mut(*id) {
            Ok(active) => of("active", active),
            // It is known for as long as the slot names it.
            Err(_) => without_queues("idle"),
        },
        Slot::Paused(active) => of("paused", active),
        Slot::Idle(_) => without_queues("idle"),
        Slot::Empty => without_queues("ended"),
    }
}

fn without_queues(state: &'static str) -> WorkerReading {
    WorkerReading {
        state,
        queues: Vec::new(),
        more: InspectNode::default(),
    }
}
