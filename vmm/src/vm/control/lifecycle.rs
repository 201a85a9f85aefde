//! The machine from its creation to its end.

use api_client::config::VmConfig;

use super::super::builder::{BuildError, Origin, build};
use super::super::consoles::Consoles;
use super::super::device_tree::assign_macs;
use super::super::landlock_rules::landlock_rules;
use super::super::machine::Machine;
use super::super::state::{TransitionError, VmState};
use super::{ControlError, Vmm};
use crate::config::{VmParams, name_devices};
use crate::monitor::Source;
use crate::sandbox::confine;

impl Vmm {
    /// Keeps a configuration, to be booted later. Landlock, if asked for, is
    /// for the rest of the process: a later configuration reaches no more.
    pub fn create(&mut self, mut config: Box<VmConfig>) -> Result<(), ControlError> {
        if self.config.is_some() {
            return Err(ControlError::AlreadyCreated);
        }
        let consoles = Consoles::open(&mut config)?;
        if config.landlock_enable {
            confine(&landlock_rules(&config)?)?;
            log::info!("Landlock confines the machine");
        } else if config.landlock_rules.is_some() {
            log::warn!("the rules for Landlock have no effect: it is not switched on");
        }
        self.config = Some(config);
        self.consoles = Some(consoles);
        self.state = VmState::Created;
        Ok(())
    }

    /// Builds the machine and lets it run.
    pub fn boot(&mut self) -> Result<(), ControlError> {
        if self.config.is_none() {
            return Err(ControlError::NotCreated);
        }
        self.emit(Source::Vm, "booting");
        self.start()?;
        self.emit(Source::Vm, "booted");
        Ok(())
    }

    fn start(&mut self) -> Result<(), ControlError> {
        let (Some(config), Some(consoles)) = (&mut self.config, &self.consoles) else {
            return Err(ControlError::NotCreated);
        };
        if !self.state.may_become(VmState::Running) || self.machine.is_some() {
            return Err(TransitionError(self.state).into());
        }
        name_devices(config, &mut self.next_name, |_| false);
        assign_macs(config).map_err(BuildError::Device)?;
        let params = VmParams::try_from(config.as_ref()).map_err(BuildError::Config)?;
        let consoles = consoles.clone();
        self.generation += 1;
        let sink = self.queue.sink(self.generation);
        let (mut machine, stats) =
            build(&self.hypervisor, &params, &consoles, &sink, Origin::Boot)?;
        self.stats.publish(stats);
        self.state.change(VmState::Running)?;
        machine.resume();
        self.machine = Some(machine);
        log::info!("the machine runs");
        Ok(())
    }

    /// Stops vCPUs and devices.
    pub fn pause(&mut self) -> Result<(), ControlError> {
        self.booted()?;
        self.emit(Source::Vm, "pausing");
        self.require(VmState::Paused)?;
        if let Some(machine) = &mut self.machine {
            machine.pause();
        }
        self.state.change(VmState::Paused)?;
        self.emit(Source::Vm, "paused");
        Ok(())
    }

    /// Lets them go on.
    pub fn resume(&mut self) -> Result<(), ControlError> {
        self.booted()?;
        self.emit(Source::Vm, "resuming");
        self.require(VmState::Running)?;
        if let Some(machine) = &mut self.machine {
            machine.resume();
        }
        self.state.change(VmState::Running)?;
        self.emit(Source::Vm, "resumed");
        if let Some(event) = self.deferred.take() {
            self.queue.sink(self.generation).send(event);
        }
        Ok(())
    }

    /// Ends the machine and keeps its configuration.
    pub fn shutdown(&mut self) -> Result<(), ControlError> {
        self.booted()?;
        self.take_down()?;
        self.emit(Source::Vm, "shutdown");
        Ok(())
    }

    /// Ends the machine and boots it again. Nothing is emitted in between: who
    /// hears that the VM is shut down takes it for the end.
    pub fn reboot(&mut self) -> Result<(), ControlError> {
        self.booted()?;
        self.emit(Source::Vm, "rebooting");
        self.take_down()?;
        if let Err(error) = self.start() {
            self.emit(Source::Vm, "shutdown");
            return Err(error);
        }
        self.emit(Source::Vm, "rebooted");
        Ok(())
    }

    /// Forgets the configuration, ending the machine if it runs.
    pub fn delete(&mut self) -> Result<(), ControlError> {
        if self.machine.is_some() {
            self.shutdown()?;
        }
        self.consoles = None;
        self.descriptors.clear();
        self.stats.clear();
        if self.config.take().is_some() {
            self.emit(Source::Vm, "deleted");
        }
        Ok(())
    }

    pub(super) fn booted(&self) -> Result<&Machine, ControlError> {
        if self.config.is_none() {
            return Err(ControlError::NotCreated);
        }
        self.machine
            .as_ref()
            .ok_or(ControlError::Transition(TransitionError(self.state)))
    }

    fn require(&self, next: VmState) -> Result<(), TransitionError> {
        let mut state = self.state;
        state.change(next)
    }

    fn take_down(&mut self) -> Result<(), ControlError> {
        self.state.change(VmState::Shutdown)?;
        // How long the host takes to have the memory back is its own affair.
        let memory = self.machine.as_ref().map(Machine::memory);
        self.drop_machine();
        drop(memory);
        self.deferred = None;
        self.stats.retire();
        self.state.change(VmState::Created)?;
        log::info!("the machine is shut down");
        Ok(())
    }

    /// Ends the machine's threads within the deadline of a shutdown, or the process.
    /// The statistics are final afterwards.
    pub(super) fn drop_machine(&mut self) {
        if let Some(watch) = &self.watch {
            watch.arm();
        }
        self.machine = None;
        if let Some(watch) = &self.watch {
            watch.disarm();
        }
    }
}
