//! A machine made anew of its own state.

use super::super::builder::{Origin, build};
use super::super::machine::MachineState;
use super::super::state::VmState;
use super::{BuildError, ControlError, Vmm};
use crate::config::VmParams;
use crate::monitor::Source;
use crate::state::StateError;

impl Vmm {
    /// Pauses the VM, saves everything but its memory, drops everything but its
    /// memory, makes it anew of the saved state, and resumes it if it ran. The
    /// guest goes on as after a pause, and its exits are counted on. Connections
    /// of the socket device end.
    ///
    /// # Errors
    /// There is no running VM, or it cannot be saved: nothing has changed then. Or
    /// it cannot be made again, and is shut down.
    pub(super) fn pulse(&mut self) -> Result<(), ControlError> {
        self.booted()?;
        let runs = self.state == VmState::Running;
        if runs {
            self.pause()?;
        }
        let outcome = self.rebuild();
        if runs && self.machine.is_some() {
            self.resume()?;
        }
        outcome
    }

    fn rebuild(&mut self) -> Result<(), ControlError> {
        let (Some(config), Some(consoles), Some(machine)) =
            (&self.config, &self.consoles, &self.machine)
        else {
            return Err(ControlError::NotCreated);
        };
        let state = as_read_from_a_file(&machine.save()?)?;
        let params = VmParams::try_from(config.as_ref()).map_err(BuildError::Config)?;
        let carried = machine.carried();
        let consoles = consoles.clone();
        // The same number: what the guest did to the machine and is not carried out
        // yet, it did to this one.
        let sink = self.queue.sink(self.generation);
        // The VM goes with the files of its statistics, and only then the next one
        // can have its place in debugfs, which goes by the descriptor's number.
        self.stats.suspend();
        self.drop_machine();
        let origin = Origin::Saved(&state, carried);
        match build(&self.hypervisor, &params, &consoles, &sink, origin) {
            Ok((mut machine, stats)) => {
                // All of it stands still until the VM is resumed.
                machine.pause();
                self.stats.carry_on(stats);
                self.machine = Some(machine);
                log::info!("the machine is made anew of its state");
                Ok(())
            }
            Err(error) => {
                self.deferred = None;
                self.stats.retire();
                self.state.change(VmState::Shutdown)?;
                self.state.change(VmState::Created)?;
                self.emit(Source::Vm, "shutdown");
                Err(error.into())
            }
        }
    }
}

/// The state as it comes out of its written form: nothing of the machine is in
/// it but data.
fn as_read_from_a_file(state: &MachineState) -> Result<MachineState, ControlError> {
    serde_json::to_vec(state)
        .and_then(|bytes| serde_json::from_slice(&bytes))
        .map_err(|error| {
            let error = StateError::unfit("the machine", &error);
            ControlError::Build(BuildError::State(error))
        })
}
