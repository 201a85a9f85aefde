//! What machines tell the control thread, and what it does then.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::super::state::VmState;
use super::{ControlError, Ended, Vmm};
use crate::event::{EventSink, MachineEvent};
use crate::monitor::Source;

/// Instead of a machine's number: an event that matters whichever machine
/// there is.
pub(super) const EVERY_MACHINE: u64 = 0;

/// Tells the control thread something; clones go to threads and devices.
#[derive(Clone)]
pub(super) struct EventQueue {
    pub(super) sender: Sender<(u64, MachineEvent)>,
    pub(super) wake: Arc<EventFd>,
}

impl EventQueue {
    pub(super) fn sink(&self, machine: u64) -> EventSink {
        let queue = self.clone();
        EventSink::new(move |event| {
            // Without a receiver the process is ending anyway.
            if queue.sender.send((machine, event)).is_ok()
                && let Err(error) = queue.wake.write(1)
            {
                log::error!("cannot wake the control thread: {error}");
            }
        })
    }
}

impl Vmm {
    /// Carries out what has been told.
    ///
    /// # Errors
    /// The control thread has to end.
    pub(super) fn handle_vm_events(&mut self) -> Result<(), ControlError> {
        // Nothing to read means that nothing was written: equally quiet.
        let _ = self.queue.wake.read();
        while let Ok((generation, event)) = self.events.try_recv() {
            let ours = generation == self.generation && self.machine.is_some();
            if !ours && generation != EVERY_MACHINE {
                log::debug!("an ended machine says {event:?}");
                continue;
            }
            match event {
                MachineEvent::PowerOff | MachineEvent::Reset if self.state == VmState::Paused => {
                    self.deferred = Some(event);
                }
                MachineEvent::PowerOff if self.no_shutdown => self.shutdown()?,
                MachineEvent::PowerOff => self.ended = Some(Ended::PowerOff),
                MachineEvent::Reset => {
                    log::info!("the guest resets the machine");
                    if self.reset_loop.is_loop(Instant::now()) {
                        log::warn!(
                            "the guest resets the machine many times a second and has not used a \
                             device: it does not find what it needs to boot"
                        );
                        self.emit(Source::Vm, "reset-loop");
                    }
                    self.reboot()?;
                }
                MachineEvent::Ejected(id) => {
                    let machine = self.machine.as_mut();
                    if machine.is_some_and(|machine| machine.devices_mut().ejected(&id)) {
                        self.emit_with(Source::Vm, "device-removed", Some(("id", &id)));
                    }
                }
                MachineEvent::DeviceActivated(id) => {
                    self.reset_loop.driver_ran();
                    self.emit_with(Source::VirtioDevice, "activated", Some(("id", &id)));
                }
                MachineEvent::DeviceReset(id) => {
                    self.emit_with(Source::VirtioDevice, "reset", Some(("id", &id)));
                }
                MachineEvent::GuestPanic(what) => {
                    log::warn!("the guest's kernel panicked ({what})");
                    self.emit_with(Source::Guest, "panic", Some(("event", what)));
                }
                MachineEvent::Failed(text) => return Err(ControlError::Failed(text)),
            }
        }
        Ok(())
    }
}
