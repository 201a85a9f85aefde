//! Devices of which a machine has one at the most: console, sockets, balloon.
//! Those that take no more than a flag are in `config::devices`.

use std::sync::Arc;

use super::{DeviceError, DeviceTree};
use crate::chardev::{CharBackend, RawTerminal};
use crate::config::{PciDevice, PciParams};
use crate::pci::PciAddress;
use crate::virtio::balloon::{Balloon, BalloonParams};
use crate::virtio::console::Console;
use crate::virtio::vsock::{Vsock, VsockParams};

const CONSOLE_ID: &str = "__console";
const BALLOON_ID: &str = "__balloon";
/// The id of a socket device to which the configuration gave none; it gives one.
const VSOCK_ID: &str = "_vsock";

impl DeviceTree {
    pub(super) fn add_console(
        &mut self,
        place: &PciParams,
        end: CharBackend,
    ) -> Result<(), DeviceError> {
        if end.is_terminal() {
            self.terminal = RawTerminal::enter().map_err(DeviceError::Console)?;
        }
        let mut size = None;
        let (id, _) = self.add(place, CONSOLE_ID, |id, events| {
            let console = Console::new(id, end.clone(), events).map_err(DeviceError::Console)?;
            size = Some(console.size());
            Ok(Box::new(console))
        })?;
        self.console = size.map(|size| (id, size, end));
        Ok(())
    }

    /// Tells the guest the size that the console's terminal has now.
    pub fn resize_console(&self) {
        let Some((id, size, end)) = &self.console else {
            return;
        };
        if let (Some((columns, rows)), Some(node)) = (end.size(), self.nodes.get(id)) {
            size.set(columns, rows);
            node.unit.config_changed();
        }
    }

    /// Adds a socket device; says what it is called and where it is.
    pub fn add_vsock(
        &mut self,
        vsock: &PciDevice<VsockParams>,
    ) -> Result<(String, PciAddress), DeviceError> {
        let params = &vsock.params;
        self.add(&vsock.pci, VSOCK_ID, |id, events| {
            let failed = |source| DeviceError::Vsock(params.socket.display().to_string(), source);
            let vsock = Vsock::new(id, params, events).map_err(failed)?;
            Ok(Box::new(vsock))
        })
    }

    pub(super) fn add_balloon(
        &mut self,
        balloon: &PciDevice<BalloonParams>,
    ) -> Result<(), DeviceError> {
        let mut size = None;
        let (id, _) = self.add(&balloon.pci, BALLOON_ID, |id, events| {
            let device = Balloon::new(id, &balloon.params, events).map_err(DeviceError::Balloon)?;
            size = Some(device.size());
            Ok(Box::new(device))
        })?;
        self.balloon = size.map(|size| (id, size));
        Ok(())
    }

    /// Asks the guest to give up so many bytes, or to take some back.
    pub fn resize_balloon(&self, bytes: u64) -> Result<(), DeviceError> {
        let (id, size) = self.balloon.as_ref().ok_or(DeviceError::NoBalloon)?;
        let node = self.nodes.get(id).ok_or(DeviceError::NoBalloon)?;
        size.set_wanted(bytes);
        node.unit.config_changed();
        Ok(())
    }

    /// Reads the bytes that the guest has given up, on whatever thread; `None`
    /// without a balloon.
    #[must_use]
    pub fn balloon_reader(&self) -> Option<Arc<dyn Fn() -> u64 + Send + Sync>> {
        let (_, size) = self.balloon.as_ref()?;
        let size = Arc::clone(size);
        Some(Arc::new(move || size.actual()))
    }
}
