//! What the API asks of the control thread, and what it may know.

use std::collections::BTreeMap;

use api_client::config::{ConsoleOutputMode, ImageType, VmConfig};
use api_client::types::{DeviceNode, VmInfo};

use super::super::builder::BuildError;
use super::super::machine::Machine;
use super::{ControlError, Ended, Vmm};
use crate::api::{ApiError, RequestHandler, VmAction, VmReply, VmStatus};
use crate::config::memory_size;
use crate::virtio::block::image::ImageFormat;

impl RequestHandler for Vmm {
    fn handle(&mut self, action: VmAction) -> Result<VmReply, ApiError> {
        // What the guest did before the request was made counts first: a device
        // that it has ejected leaves its id and its slot to the one that is added.
        if self.failed.is_none() {
            self.failed = self.handle_vm_events().err();
        }
        if let Some(error) = &self.failed {
            return Err(ApiError::from_error(error.kind(), error));
        }
        let outcome = match action {
            VmAction::Create(config, descriptors) => self.create(config).map(|()| {
                self.descriptors.push(descriptors);
            }),
            VmAction::Delete => self.delete(),
            VmAction::Boot => self.boot(),
            VmAction::Pause => self.pause(),
            VmAction::Resume => self.resume(),
            VmAction::Shutdown => self.shutdown(),
            VmAction::Reboot => self.reboot(),
            VmAction::Pulse => self.pulse(),
            VmAction::Snapshot(wanted) => self.snapshot(&wanted),
            VmAction::Restore(wanted, descriptors) => self.restore(&wanted, descriptors),
            VmAction::PowerButton => self.booted().map(|machine| {
                machine.devices().press_power_button();
            }),
            VmAction::Nmi => self.booted().and_then(|machine| {
                machine
                    .send_nmi()
                    .map_err(|error| ControlError::Build(BuildError::Hypervisor(error)))
            }),
            VmAction::Resize(wanted) => self.resize(&wanted),
            VmAction::ResizeDisk(wanted) => self.resize_disk(&wanted),
            VmAction::ResizeZone(_) => Err(ControlError::Unsupported(
                "Changing the size of a memory zone",
            )),
            VmAction::AddDevice(device) => match self.add_device(&device) {
                Ok(Some(added)) => return Ok(VmReply::Device(added)),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            },
            VmAction::RemoveDevice(id) => self.remove_device(&id),
            VmAction::VmmShutdown => {
                self.ended = Some(Ended::Request);
                Ok(())
            }
        };
        outcome
            .map(|()| VmReply::Empty)
            .map_err(|error| ApiError::from_error(error.kind(), &error))
    }

    fn status(&self) -> VmStatus {
        let Some(config) = &self.config else {
            return VmStatus::default();
        };
        let machine = self.machine.as_ref();
        VmStatus {
            info: Some(VmInfo {
                config: shown_config(config, machine),
                state: self.state.into(),
                memory_actual_size: memory_size(&config.memory),
                device_tree: machine.map(|machine| device_tree(config, machine)),
            }),
            counters: machine.map(|machine| machine.devices().counters()),
            balloon: machine.and_then(|machine| machine.devices().balloon_reader()),
            machine: machine.map(|machine| machine.view(&self.stats)),
        }
    }
}

/// The configuration with what was found out. It is only shown: the next boot
/// is to look again, and to treat what it finds as found.
fn shown_config(config: &VmConfig, machine: Option<&Machine>) -> VmConfig {
    let mut config = config.clone();
    for disk in config.disks.iter_mut().flatten() {
        let id = disk.pci_common.id.as_deref().unwrap_or_default();
        match machine.and_then(|machine| machine.devices().image_format(id)) {
            Some(ImageFormat::Raw) => disk.image_type = ImageType::Raw,
            Some(ImageFormat::Qcow2) => disk.image_type = ImageType::Qcow2,
            Some(ImageFormat::Detect) | None => {}
        }
    }
    config
}

fn device_tree(config: &VmConfig, machine: &Machine) -> BTreeMap<String, DeviceNode> {
    let mut tree = machine.devices().tree();
    if config.serial.mode != ConsoleOutputMode::Off {
        let id = "__serial".to_string();
        tree.insert(
            id.clone(),
            DeviceNode {
                id,
                ..Default::default()
            },
        );
    }
    tree
}
