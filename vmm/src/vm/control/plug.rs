//! Devices that come and go while the machine is configured or runs.

use std::collections::BTreeSet;

use api_client::config::VmConfig;
use api_client::types::PciDeviceInfo;

use super::{ControlError, Vmm};
use crate::api::NewDevice;
use crate::config::{DeviceParams, forget_device, name_devices};
use crate::pci::PciAddress;
use crate::virtio::transport::pci::FUNCTION_PREFIX;
use crate::vm::BuildError;
use crate::vm::device_tree::{DeviceError, DeviceTree, assign_macs};

/// Puts a device into a configuration.
fn configure(config: &mut VmConfig, device: &NewDevice) -> Result<(), ControlError> {
    match device {
        NewDevice::Disk(disk) => config
            .disks
            .get_or_insert_default()
            .push(disk.as_ref().clone()),
        NewDevice::Net(net, _) => config
            .net
            .get_or_insert_default()
            .push(net.as_ref().clone()),
        NewDevice::Vsock(_) if config.vsock.is_some() => return Err(ControlError::OneVsock),
        NewDevice::Vsock(vsock) => config.vsock = Some(vsock.as_ref().clone()),
    }
    Ok(())
}

/// Puts the device that was configured last into the machine.
fn plug(
    devices: &mut DeviceTree,
    params: &DeviceParams,
    device: &NewDevice,
) -> Result<Option<(String, PciAddress)>, DeviceError> {
    match device {
        NewDevice::Disk(_) => params.disks.last().map(|disk| devices.add_disk(disk)),
        NewDevice::Net(..) => params.net.last().map(|net| devices.add_net(net)),
        NewDevice::Vsock(_) => params.vsock.as_ref().map(|vsock| devices.add_vsock(vsock)),
    }
    .transpose()
}

impl Vmm {
    /// Adds a device to the configuration, and to the machine if there is one;
    /// then says where it is.
    pub(super) fn add_device(
        &mut self,
        device: &NewDevice,
    ) -> Result<Option<PciDeviceInfo>, ControlError> {
        let mut config = self.config.clone().ok_or(ControlError::NotCreated)?;
        configure(&mut config, device)?;
        // An id may be in use by a device that has left the configuration and not
        // yet the machine.
        let machine = self.machine.as_ref();
        name_devices(&mut config, &mut self.next_name, |id| {
            machine.is_some_and(|machine| machine.devices().contains(id))
        });
        assign_macs(&mut config).map_err(BuildError::Device)?;
        let mut added = None;
        if let Some(machine) = &mut self.machine {
            // All of them are checked, because what makes sense for one
            // depends on the others.
            let params = DeviceParams::try_from(config.as_ref()).map_err(BuildError::Config)?;
            let devices = machine.devices_mut();
            added = plug(devices, &params, device).map_err(BuildError::Device)?;
            if let Some((_, address)) = &added {
                devices.notify_added(*address);
            }
        }
        self.config = Some(config);
        if let NewDevice::Net(_, descriptors) = device {
            self.descriptors.push(descriptors.clone());
        }
        Ok(added.map(|(id, address)| PciDeviceInfo {
            id,
            bdf: address.to_string(),
        }))
    }

    /// Takes a device out of the configuration, and asks the guest to give it
    /// up. It is gone once the guest has.
    pub(super) fn remove_device(&mut self, id: &str) -> Result<(), ControlError> {
        let config = self.config.as_mut().ok_or(ControlError::NotCreated)?;
        let id = id.strip_prefix(FUNCTION_PREFIX).unwrap_or(id);
        if self
            .machine
            .as_ref()
            .is_some_and(|machine| machine.devices().is_fixed(id))
        {
            return Err(ControlError::FixedDevice(id.to_owned()));
        }
        let leaves = self
            .machine
            .as_mut()
            .is_some_and(|machine| machine.devices_mut().request_unplug(id));
        let forgotten = forget_device(config, id);
        // What was sent along for it is closed.
        let named: BTreeSet<i32> = config
            .net
            .iter()
            .flatten()
            .flat_map(|net| net.fds.iter().flatten().copied())
            .collect();
        self.descriptors
            .retain(|held| held.raw_fds().iter().any(|number| named.contains(number)));
        if leaves || forgotten {
            return Ok(());
        }
        Err(ControlError::NoSuchDevice(id.to_owned()))
    }
}
