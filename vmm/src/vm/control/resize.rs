//! Changes of size: of the balloon and of disks at any time, of the rest before
//! the boot.

use api_client::types::{VmResize, VmResizeDisk};

use super::{ControlError, Vmm};
use crate::config::{VmParams, check_balloon_size, memory_size};
use crate::monitor::Source;
use crate::vm::BuildError;
use crate::vm::device_tree::DeviceError;

impl Vmm {
    /// Gives the machine what is asked for, or refuses all of it.
    pub(super) fn resize(&mut self, wanted: &VmResize) -> Result<(), ControlError> {
        let mut config = self.config.clone().ok_or(ControlError::NotCreated)?;
        self.emit(Source::Vm, "resizing");
        if let Some(vcpus) = wanted.desired_vcpus {
            if self.machine.is_some() && vcpus != config.cpus.boot_vcpus {
                return Err(ControlError::Unsupported(
                    "Changing the number of vCPUs of a running machine",
                ));
            }
            config.cpus.boot_vcpus = vcpus;
            config.cpus.max_vcpus = config.cpus.max_vcpus.max(vcpus);
        }
        if let Some(memory) = wanted.desired_ram {
            let has_other_size = memory != memory_size(&config.memory);
            if self.machine.is_some() && has_other_size {
                return Err(ControlError::Unsupported(
                    "Changing the memory of a running machine other than by its balloon",
                ));
            }
            if has_other_size {
                config.memory.size = memory;
            }
        }
        if let Some(bytes) = wanted.desired_balloon {
            let balloon =
                config
                    .balloon
                    .as_mut()
                    .ok_or(ControlError::Build(BuildError::Device(
                        DeviceError::NoBalloon,
                    )))?;
            check_balloon_size(bytes, memory_size(&config.memory))?;
            balloon.size = bytes;
        }
        VmParams::try_from(config.as_ref())?;
        if let (Some(machine), Some(bytes)) = (&self.machine, wanted.desired_balloon) {
            let devices = machine.devices();
            devices.resize_balloon(bytes).map_err(BuildError::Device)?;
        }
        self.config = Some(config);
        self.emit(Source::Vm, "resized");
        Ok(())
    }

    /// Gives a disk of the running machine another size.
    pub(super) fn resize_disk(&self, wanted: &VmResizeDisk) -> Result<(), ControlError> {
        let devices = self.booted()?.devices();
        self.emit(Source::Vm, "resizing");
        devices
            .resize_disk(&wanted.id, wanted.desired_size)
            .map_err(BuildError::Device)?;
        self.emit(Source::Vm, "resized");
        Ok(())
    }
}
