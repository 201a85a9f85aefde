//! What runs on the device's thread.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::chardev::CharBackend;
use crate::memory::{IoVecs, IoVecsError};
use crate::sources::Sources;
use crate::virtio::worker::{Service, ServiceError};
use crate::virtio::{Activation, Chain, GuestFaults, QueueError, VirtQueue};
use event_manager::EventOps;

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const INPUT: u32 = 2;
const LISTENER: u32 = 3;

/// Bytes of one chain that are written; the rest is dropped. Linux sends 32 KiB
/// at the most.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Bytes of one write to the host.
const PIECE: usize = 64 << 10;

/// Why a chain cannot be served.
#[derive(Debug, thiserror::Error)]
enum ChainError {
    #[error("A console buffer without a byte")]
    Empty,
    #[error("Console output of {0} bytes in one piece is cut off")]
    TooLong(usize),
    #[error(transparent)]
    Scatter(#[from] IoVecsError),
}

/// What reading the input came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// There may be more.
    Idle,
    /// The driver has given no buffers.
    NoBuffers,
    /// There will be no more.
    End,
}

pub(super) struct ConsoleService {
    end: CharBackend,
    faults: Arc<GuestFaults>,
    active: Option<Active>,
}

/// What there is between activation and reset.
struct Active {
    receive: Option<VirtQueue>,
    transmit: Option<VirtQueue>,
    buffers: IoVecs,
    /// The input is waited for.
    listening: bool,
}

impl ConsoleService {
    pub(super) fn new(end: CharBackend, faults: Arc<GuestFaults>) -> Self {
        Self {
            end,
            faults,
            active: None,
        }
    }

    /// Waits for the input, or not. Where the host refuses to wait, the next
    /// event tries again.
    fn listen(&mut self, wanted: bool, ops: &mut EventOps) {
        let Some(active) = &mut self.active else {
            return;
        };
        let Some(input) = self.end.input().filter(|_| wanted != active.listening) else {
            return;
        };
        if !wanted {
            active.listening = false;
            // It was there.
            let _ = ops.remove_source(&*input);
            return;
        }
        match ops.add_source(&*input, INPUT) {
            Ok(()) => active.listening = true,
            // A plain file or /dev/null cannot be waited for and has nothing
            // to say to a console.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.end.end_input(),
            Err(error) => self
                .faults
                .report_host(&format_args!("the input cannot be waited for: {error}")),
        }
    }

    fn read(&mut self, ops: &mut EventOps) -> Result<(), ServiceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let (Some(queue), Some(input)) = (&mut active.receive, self.end.input()) else {
            return Ok(());
        };
        match receive(queue, &mut active.buffers, input.as_fd(), &self.faults)? {
            Input::Idle => self.listen(true, ops),
            Input::NoBuffers => self.listen(false, ops),
            Input::End => {
                self.listen(false, ops);
                self.end.end_input();
            }
        }
        Ok(())
    }
}

impl Service for ConsoleService {
    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        self.active = Some(Active {
            receive: activation.take_queue(0),
            transmit: activation.take_queue(1),
            buffers: IoVecs::new(activation.memory),
            listening: false,
        });
        Ok(())
    }

    fn attach(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        if let Some(queue) = &active.receive {
            queue.listen(ops, RECEIVE)?;
        }
        if let Some(queue) = &active.transmit {
            queue.listen(ops, TRANSMIT)?;
        }
        if let Some(listener) = self.end.listener() {
            ops.add_source(listener, LISTENER)?;
        }
        self.listen(true, ops);
        Ok(())
    }

    fn ready(&mut self, token: u32, ops: &mut EventOps) -> Result<(), ServiceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        match token {
            RECEIVE => {
                if let Some(queue) = &active.receive {
                    // Nothing to read: somebody else has looked already.
                    let _ = queue.kick().read();
                }
                self.listen(true, ops);
            }
            TRANSMIT => {
                if let Some(queue) = &mut active.transmit {
                    transmit(queue, &mut active.buffers, &self.end, &self.faults)?;
                }
            }
            LISTENER => {
                self.listen(false, ops);
                if !self.end.accept() {
                    log::debug!("nobody has connected to the console after all");
                }
                self.listen(true, ops);
            }
            _ => self.read(ops)?,
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), ServiceError> {
        if let Some(active) = &mut self.active {
            active.listening = false;
        }
        Ok(())
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        self.active
            .iter()
            .flat_map(|active| active.receive.iter().chain(&active.transmit))
            .collect()
    }

    fn stop(&mut self) {
        self.active = None;
    }
}

fn gather(chain: &Chain, buffers: &mut IoVecs, writable: bool) -> Result<(), ChainError> {
    buffers.clear();
    for descriptor in chain.clone() {
        if descriptor.is_write_only() == writable {
            buffers.push(descriptor.addr(), descriptor.len() as usize)?;
        }
    }
    match buffers.length() {
        0 => Err(ChainError::Empty),
        _ => Ok(()),
    }
}

/// Reads once from `input` into the driver's next buffer.
pub(super) fn receive(
    queue: &mut VirtQueue,
    buffers: &mut IoVecs,
    input: impl AsFd,
    faults: &GuestFaults,
) -> Result<Input, QueueError> {
    // A driver that never stops adding useless buffers waits its turn.
    let mut left = queue.size();
    let outcome = loop {
        let Some(chain) = queue.pop()? else {
            if queue.want_kicks()? {
                continue;
            }
            break Input::NoBuffers;
        };
        if let Err(error) = gather(&chain, buffers, true) {
            faults.report(&error);
            queue.complete(chain.head_index(), 0)?;
            left -= 1;
            if left == 0 {
                break Input::Idle;
            }
            continue;
        }
        match buffers.read_from(input.as_fd(), 0, usize::MAX, &mut []) {
            Ok(count @ 1..) => {
                queue.complete(chain.head_index(), count as u32)?;
                break Input::Idle;
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                queue.push_back();
                break Input::Idle;
            }
            ended => {
                if let Err(error) = ended {
                    log::debug!("console input ends: {error}");
                }
                queue.push_back();
                break Input::End;
            }
        }
    };
    queue.notify()?;
    Ok(outcome)
}

/// Writes everything that the driver has put into the queue.
pub(super) fn transmit(
    queue: &mut VirtQueue,
    buffers: &mut IoVecs,
    end: &CharBackend,
    faults: &GuestFaults,
) -> Result<(), QueueError> {
    let stop = queue.stop_flag().clone();
    queue.drain(|chain| {
        if let Err(error) = gather(chain, buffers, false) {
            faults.report(&error);
            return 0;
        }
        let mut length = buffers.length();
        if length > MAX_BYTES {
            faults.report(&ChainError::TooLong(length));
            length = MAX_BYTES;
        }
        end.write_with(length, |output, done| {
            if stop.is_ending() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            buffers.write_to(output, done, PIECE.min(length - done))
        });
        0
    })
}
