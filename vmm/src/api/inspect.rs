//! The inspector: a thread that reads the live state of everything for clients.
//! It asks whoever owns a part, and waits for each for a limited time, so that a
//! request is answered whatever the VMM is busy with, and neither the API thread
//! nor the control thread ever waits for it.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api_client::inspect::{InspectNode, InspectPath, Inspection};

use super::answer;
use super::http::Response;
use super::parameter::{ParameterError, parameters};
use super::queue::StatusBoard;
use super::request::{ApiError, ErrorKind};
use crate::event::{EventSink, MachineEvent};
use crate::inspect::Scope;
use crate::sandbox::{OnViolation, OpenDescriptors, ThreadKind, enforced, spawn, threads};
use crate::stats::monotonic_us;

/// How long all that was asked for by one time waits for other threads.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long each part of it does, whatever the others have used up.
const LEAST_PATIENCE: Duration = Duration::from_millis(20);

const FAILURE: &str = "The VM could not be inspected";

/// Understands `path=PATH`.
///
/// # Errors
/// Another parameter, or what is no path.
pub fn parse_query(text: &str) -> Result<InspectPath, ParameterError> {
    let mut path = InspectPath::default();
    for (name, value) in parameters(text)? {
        match name {
            "path" => path = value.parse()?,
            _ => {
                return Err(ParameterError::Unknown {
                    name: name.to_owned(),
                    valid: "path",
                });
            }
        }
    }
    Ok(path)
}

/// Takes the answer to a request. Dropping it unused is an answer too.
struct Reply(Option<Box<dyn FnOnce(Response) + Send>>);

impl Reply {
    fn send(mut self, response: Response) {
        if let Some(deliver) = self.0.take() {
            deliver(response);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(deliver) = self.0.take() {
            let error = ApiError::new(ErrorKind::Internal, "The inspector has ended");
            deliver(answer::error(error, FAILURE));
        }
    }
}

type Order = (InspectPath, Reply);

/// The API thread's handle. Dropping it ends the thread.
pub struct Inspector {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Inspector {
    /// Starts the thread.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn start(board: StatusBoard) -> io::Result<Self> {
        let (orders, received) = channel();
        let descriptors = OpenDescriptors::open()
            .inspect_err(|error| log::warn!("cannot count descriptors: {error}"))
            .ok();
        let reader = Reader { board, descriptors };
        // The guest goes on without it.
        let sink = EventSink::new(|event| {
            if let MachineEvent::Failed(why) = event {
                log::error!("{why}");
            }
        });
        let thread = spawn("inspect", ThreadKind::Inspector, sink, move || {
            reader.run(&received);
        })?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Has the state at `path` read, and the answer given to `deliver`.
    pub fn read(&self, path: InspectPath, deliver: impl FnOnce(Response) + Send + 'static) {
        if let Some(orders) = &self.orders {
            // An order that cannot be given is dropped, which answers it.
            let _ = orders.send((path, Reply(Some(Box::new(deliver)))));
        }
    }
}

impl Drop for Inspector {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// What the thread reads from.
struct Reader {
    board: StatusBoard,
    descriptors: Option<OpenDescriptors>,
}

impl Reader {
    fn run(&self, orders: &Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            let mut waiting: VecDeque<Order> = std::iter::once(first).collect();
            waiting.extend(orders.try_iter());
            let deadline = Instant::now() + PATIENCE;
            while let Some((path, reply)) = waiting.pop_front() {
                let response = self.answer(&path, deadline);
                reply.send(response.clone());
                // Whoever had asked for the same by now gets the same.
                let (same, others): (VecDeque<_>, _) =
                    waiting.into_iter().partition(|(other, _)| *other == path);
                waiting = others;
                for (_, reply) in same {
                    reply.send(response.clone());
                }
            }
        }
    }

    fn answer(&self, path: &InspectPath, deadline: Instant) -> Response {
        let status = self.board.read();
        let Some(info) = &status.info else {
            return answer::no_vm();
        };
        let monotonic_us = monotonic_us();
        let deadline = deadline.max(Instant::now() + LEAST_PATIENCE);
        let scope = Scope::new(path.parts(), deadline);
        let mut root = InspectNode::default();
        root.set("state", format!("{:?}", info.state));
        root.set("process", u64::from(std::process::id()));
        if let Some((action, since)) = self.board.busy() {
            root.set("busy_with", action);
            root.set("busy_ms", since.elapsed().as_millis() as u64);
        }
        scope.add(&mut root, "threads", show_threads);
        scope.add(&mut root, "descriptors", |_, node| {
            self.show_descriptors(node)
        });
        if let Some(machine) = &status.machine {
            machine.inspect(&scope, &mut root);
        }
        match root.take(path) {
            Ok(node) => Response::json(&Inspection {
                path: path.to_string(),
                monotonic_us,
                node,
            }),
            Err(error) => answer::error(ApiError::from_error(ErrorKind::NotFound, &error), FAILURE),
        }
    }

    fn show_descriptors(&self, node: &mut InspectNode) {
        let counted = match &self.descriptors {
            Some(list) => list.count(),
            None => return node.lacks("/proc/self/fd cannot be opened"),
        };
        match counted {
            Ok(kinds) => {
                node.set("total", kinds.values().sum::<u64>());
                for (kind, count) in kinds {
                    node.set(kind, count);
                }
            }
            Err(error) => node.lacks(format!("/proc/self/fd cannot be read: {error}")),
        }
    }
}

fn show_threads(scope: &Scope<'_>, node: &mut InspectNode) {
    let filters = match enforced() {
        None => "none",
        Some(OnViolation::End) => "enforced",
        Some(OnViolation::Log) => "logged",
        Some(OnViolation::Refuse) => "refused",
    };
    node.set("filters", filters);
    for thread in threads() {
        scope.add(node, &thread.id.to_string(), |_, node| {
            node.set("name", thread.name);
            node.set("filter", thread.kind.name());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_the_one_parameter() {
        let parts = |text: &str| parse_query(text).map(|path| path.parts().to_vec());
        assert_eq!(parts(""), Ok(vec![]));
        assert_eq!(parts("path="), Ok(vec![]));
        assert_eq!(
            parts("path=virtio/a%2Fb"),
            Ok(vec!["virtio".to_owned(), "a/b".to_owned()])
        );
        assert_eq!(parts("path=..%2f.."), Ok(vec!["../..".to_owned()]));
        for text in [
            "path=/",
            "path=a//b",
            "path=%",
            "path=%ff",
            "path=a&path=b",
            "paths=a",
            "=",
            "a",
        ] {
            assert!(parts(text).is_err(), "{text}");
        }
    }
}
