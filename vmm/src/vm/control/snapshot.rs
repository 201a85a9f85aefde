//! Snapshot and restore.

use std::sync::Arc;

use api_client::config::{
    MemoryRestoreMode, RestoreConfig, RestoredNetConfig, VmConfig, VmSnapshotConfig,
};
use hypervisor::x86::state::TscState;

use super::super::builder::{Carried, Origin, build};
use super::super::snapshot::{self, SavedVm, Snapshot, SnapshotError};
use super::super::state::VmState;
use super::{BuildError, ControlError, Vmm};
use crate::api::Descriptors;
use crate::config::VmParams;
use crate::memory::{self, RestoreMode};
use crate::monitor::Source;
use crate::state::StateError;

impl Vmm {
    /// Writes a snapshot of the paused machine.
    pub(super) fn snapshot(&mut self, wanted: &VmSnapshotConfig) -> Result<(), ControlError> {
        self.booted()?;
        let directory = snapshot::directory(&wanted.destination_url)?;
        self.emit(Source::Vm, "snapshotting");
        if self.state != VmState::Paused {
            return Err(SnapshotError::NotPaused.into());
        }
        if self.deferred.is_some() {
            return Err(SnapshotError::Deferred.into());
        }
        let (Some(config), Some(machine)) = (&self.config, &self.machine) else {
            return Err(ControlError::NotCreated);
        };
        let state = machine.save_vm(self.hypervisor.isa(), self.stats.boot_id())?;
        snapshot::write(&directory, config, &state, &machine.memory())?;
        log::info!("the machine is saved to {}", directory.display());
        self.emit(Source::Vm, "snapshotted");
        Ok(())
    }

    /// Makes a machine of a snapshot. It is paused unless `wanted` asks to resume it.
    pub fn restore(
        &mut self,
        wanted: &RestoreConfig,
        descriptors: Descriptors,
    ) -> Result<(), ControlError> {
        if self.config.is_some() {
            return Err(ControlError::AlreadyCreated);
        }
        self.emit(Source::Vm, "restoring");
        let directory = snapshot::directory(&wanted.source_url)?;
        let mut saved = snapshot::open(&directory, self.hypervisor.isa())?;
        replace_descriptors(&mut saved.config, wanted.net_fds.as_deref())?;
        let config = std::mem::take(&mut saved.config);
        self.create(Box::new(config))?;
        self.descriptors.push(descriptors);
        if let Err(error) = self.start_restored(saved, wanted) {
            self.delete()?;
            return Err(error);
        }
        log::info!("the machine is restored from {}", directory.display());
        self.emit(Source::Vm, "restored");
        if wanted.resume {
            self.resume()?;
        }
        Ok(())
    }

    /// Builds the machine of a snapshot, paused.
    fn start_restored(
        &mut self,
        saved: Snapshot,
        wanted: &RestoreConfig,
    ) -> Result<(), ControlError> {
        let (Some(config), Some(consoles)) = (&self.config, &self.consoles) else {
            return Err(ControlError::NotCreated);
        };
        let mut params = VmParams::try_from(config.as_ref()).map_err(BuildError::Config)?;
        let Snapshot {
            config: _,
            mut state,
            memory,
        } = saved;
        if wanted.prefault {
            for zone in &mut params.memory {
                zone.backing.prefault = true;
            }
        }
        let mode = match wanted.memory_restore_mode {
            MemoryRestoreMode::Copy => RestoreMode::Copy,
            MemoryRestoreMode::OnDemand => RestoreMode::OnDemand,
        };
        let ram = memory::restore(&params.memory, &memory, mode).map_err(SnapshotError::Memory)?;
        if memory::contents::regions(&ram) != state.memory {
            let why = "it has other regions than the configuration";
            return Err(SnapshotError::State(StateError::unfit("the memory", &why)).into());
        }
        let (recorders, ranges) = state.recorders()?;
        let carried = Carried {
            ram,
            recorders: recorders.into_iter().map(Arc::new).collect(),
            ranges: Arc::new(ranges),
        };
        advance_tsc(&mut state);
        let consoles = consoles.clone();
        self.generation += 1;
        let sink = self.queue.sink(self.generation);
        let origin = Origin::Saved(&state.machine, carried);
        let (mut machine, stats) = build(&self.hypervisor, &params, &consoles, &sink, origin)?;
        // All of it stands still until the VM is resumed.
        machine.pause();
        self.stats.publish_as(stats, state.boot_id);
        self.state.change(VmState::Paused)?;
        self.machine = Some(machine);
        Ok(())
    }
}

/// Gives network devices that had file descriptors the new ones.
fn replace_descriptors(
    config: &mut VmConfig,
    given: Option<&[RestoredNetConfig]>,
) -> Result<(), SnapshotError> {
    let nets = config.net.iter_mut().flatten();
    for net in nets.filter(|net| net.fds.is_some()) {
        let id = net.pci_common.id.clone().unwrap_or_default();
        let new = given.unwrap_or_default().iter().find(|new| new.id == id);
        net.fds = match new {
            Some(new) => new.fds.clone(),
            None => return Err(SnapshotError::NetDescriptors(id)),
        };
    }
    let is_known = |id: &str| {
        let mut nets = config.net.iter().flatten();
        nets.any(|net| net.fds.is_some() && net.pci_common.id.as_deref() == Some(id))
    };
    match given
        .unwrap_or_default()
        .iter()
        .find(|new| !is_known(&new.id))
    {
        Some(new) => Err(SnapshotError::NoNet(new.id.clone())),
        None => Ok(()),
    }
}

/// Adds the time since the snapshot to the time stamp counters, unless the host has
/// not been rebooted: there they keep their offset to the host's.
fn advance_tsc(state: &mut SavedVm) {
    if state.is_of_this_boot() {
        return;
    }
    let elapsed = state.machine.vm.clock.wall_clock.map_or(0, |then| {
        let now = jiff::Timestamp::now().as_nanosecond();
        u64::try_from(now - i128::from(then)).unwrap_or(0)
    });
    for vcpu in &mut state.machine.vcpus {
        let TscState { khz, value, offset } = &mut vcpu.state.tsc;
        *offset = None;
        let ticks = u128::from(elapsed) * u128::from(*khz) / 1_000_000;
        *value = value.wrapping_add(ticks as u64);
    }
}
