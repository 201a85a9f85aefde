//! The control thread: it owns configuration and machine, carries out what the
//! API asks, and reacts to what the guest does to itself.
//!
//! Everything that changes the machine happens here, one thing after another,
//! so there is nothing to lock. Events come from vCPU and device threads
//! through a channel; each machine has a number, so that the last words of a
//! machine that is gone do not end the next.

mod error;
mod event_loop;
mod events;
mod lifecycle;
mod plug;
mod pulse;
mod requests;
mod resize;
mod snapshot;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use api_client::config::VmConfig;
use hypervisor::Hypervisor;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use error::ControlError;
pub use event_loop::{Ended, Signals};
use events::{EVERY_MACHINE, EventQueue};

use super::builder::BuildError;
use super::consoles::Consoles;
use super::deadline::{SHUTDOWN_GRACE, ShutdownWatch};
use super::machine::Machine;
use super::reset_loop::ResetLoop;
use super::state::VmState;
use crate::api::Descriptors;
use crate::event::MachineEvent;
use crate::monitor::{EventMonitor, Source};
use crate::sandbox::end_process;
use crate::stats::StatsHub;

/// Configuration, machine, and what is needed to make one from the other.
pub struct Vmm {
    hypervisor: Arc<dyn Hypervisor>,
    stats: Arc<StatsHub>,
    /// The guest's power-off ends the machine only, not the process.
    no_shutdown: bool,
    queue: EventQueue,
    events: Receiver<(u64, MachineEvent)>,
    config: Option<Box<VmConfig>>,
    /// What clients sent along, for as long as the configuration refers to it.
    descriptors: Vec<Descriptors>,
    /// The host's ends of the configuration's consoles.
    consoles: Option<Consoles>,
    state: VmState,
    machine: Option<Machine>,
    /// What a paused guest has done to itself just before it stood still. It
    /// takes effect when the guest goes on: paused it is to stay.
    deferred: Option<MachineEvent>,
    reset_loop: ResetLoop,
    /// Number of the machine.
    generation: u64,
    /// Number in the next name that is made up for a device.
    next_name: u32,
    ended: Option<Ended>,
    /// Why the control thread has to end, as it found out during a request.
    failed: Option<ControlError>,
    monitor: Option<EventMonitor>,
    watch: Option<ShutdownWatch>,
}

impl Vmm {
    /// A control thread without a machine.
    pub fn new(
        hypervisor: Arc<dyn Hypervisor>,
        stats: Arc<StatsHub>,
        no_shutdown: bool,
    ) -> Result<Self, ControlError> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ControlError::SetUp)?;
        let (sender, events) = channel();
        Ok(Self {
            hypervisor,
            stats,
            no_shutdown,
            queue: EventQueue {
                sender,
                wake: Arc::new(wake),
            },
            events,
            config: None,
            descriptors: Vec::new(),
            consoles: None,
            state: VmState::Created,
            machine: None,
            deferred: None,
            reset_loop: ResetLoop::default(),
            generation: 0,
            next_name: 0,
            ended: None,
            failed: None,
            monitor: None,
            watch: None,
        })
    }

    /// Ends the process if a VM's threads do not end in time, or the VMM itself
    /// does not after a byte came through `signal`, whatever blocks it.
    pub fn limit_shutdown(&mut self, signal: UnixStream) -> Result<(), ControlError> {
        let sink = self.queue.sink(EVERY_MACHINE);
        let watch = ShutdownWatch::start(signal, SHUTDOWN_GRACE, sink, || {
            end_process(&format!(
                "Error: The VM has not shut down within {SHUTDOWN_GRACE:?}: a thread waits for the host\n"
            ))
        });
        self.watch = Some(watch.map_err(ControlError::SetUp)?);
        Ok(())
    }

    /// Writes events to `output` from now on.
    pub fn monitor_events(&mut self, output: File) -> Result<(), ControlError> {
        let sink = self.queue.sink(EVERY_MACHINE);
        let monitor = EventMonitor::start(output, sink).map_err(ControlError::SetUp)?;
        self.monitor = Some(monitor);
        self.emit(Source::Vmm, "starting");
        Ok(())
    }

    fn emit(&self, source: Source, event: &'static str) {
        self.emit_with(source, event, None);
    }

    fn emit_with(
        &self,
        source: Source,
        event: &'static str,
        property: Option<(&'static str, &str)>,
    ) {
        if let Some(monitor) = &self.monitor {
            monitor.emit(source, event, property);
        }
    }
}

#[cfg(test)]
mod tests;
