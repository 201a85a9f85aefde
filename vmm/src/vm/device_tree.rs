//! The devices of a machine: the one owner of their ids and PCI slots. It
//! belongs to the control thread.
//!
//! A device that is unplugged keeps both until the control thread hears that
//! the guest has ejected it; by then nothing of it is left on the bus. So a
//! device that is added right after never shares an id or a slot with one that
//! is going, and an event that arrives late means no other device. The address
//! of a device's BAR at boot follows from its slot.

mod inspect;
mod net;
mod singletons;
mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api_client::types::{DeviceNode, VmCounters};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use inspect::{DeviceView, inspect_bus, inspect_devices};
pub(super) use net::assign_macs;
pub use slots::SlotError;
use slots::Slots;

use crate::bus::{Bus, BusError};
use crate::chardev::{CharBackend, RawTerminal};
use crate::config::{DeviceParams, PciDevice, PciParams};
use crate::devices::{HotplugController, HotplugState, ResetControl};
use crate::event::{EventSink, MachineEvent};
use crate::inspect::Gate;
use crate::interrupt::{InterruptError, MsiVector};
use crate::memory::MemoryError;
use crate::memory::layout::{HOTPLUG_PORTS, PCI_CONFIG_PORTS};
use crate::pci::{
    DeviceCounters, PciAddress, PciConfigPorts, PciContext, PciSegment, PciUnit, UnitError,
};
use crate::state::StateError;
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::BalloonSize;
use crate::virtio::block::image::{FileId, Image, ImageError, ImageFormat, ResizeError};
use crate::virtio::block::{Block, DiskImage, DiskLimit, DiskParams};
use crate::virtio::console::ConsoleSize;
use crate::virtio::net::NetError;
use crate::virtio::rate_limit::RateLimit;
use crate::virtio::rng::Rng;
use crate::virtio::transport::pci::{TransportError, VirtioPci};

/// Why a device cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Another device has the name.
    #[error("There is a device called {0} already")]
    Exists(String),
    /// No slot on the bus.
    #[error("The device {0} gets no PCI slot")]
    Slot(String, #[source] SlotError),
    /// No registers.
    #[error("The device {0} cannot be connected")]
    Transport(String, #[source] TransportError),
    /// The bus itself.
    #[error("The PCI bus cannot be set up")]
    Segment(#[source] MemoryError),
    /// The bus' registers.
    #[error("The PCI bus cannot be placed")]
    Bus(#[from] BusError),
    /// A disk's image.
    #[error("The disk {0} has no usable image")]
    Image(String, #[source] ImageError),
    /// A disk's image, which another disk has already.
    #[error("{0} is in use by the disk {1} of this VM")]
    ImageInUse(String, String),
    /// A disk's size.
    #[error("The disk {0} keeps its size")]
    Resize(String, #[source] ResizeError),
    /// Something else is called so.
    #[error("There is no disk called {0}")]
    NoDisk(String),
    /// A disk's threads.
    #[error("The disk {0} cannot be started")]
    Disk(String, #[source] std::io::Error),
    /// A network device.
    #[error("The network device {0} cannot be made")]
    Net(String, #[source] NetError),
    /// No random bytes for a hardware address.
    #[error("Cannot generate a MAC address")]
    Mac(#[source] std::io::Error),
    /// The console's other end.
    #[error("The virtio console cannot be connected")]
    Console(#[source] std::io::Error),
    /// The socket device.
    #[error("The socket device cannot use {0}")]
    Vsock(String, #[source] std::io::Error),
    /// The balloon's thread.
    #[error("The memory balloon cannot be started")]
    Balloon(#[source] std::io::Error),
    /// There is none.
    #[error("The machine has no memory balloon")]
    NoBalloon,
    /// A device that a flag asks for.
    #[error("The device {0} cannot be made")]
    Flag(String, #[source] UnitError),
    /// The source of random bytes.
    #[error("The entropy device's source {0} cannot be used")]
    Rng(String, #[source] std::io::Error),
}

/// The id of a disk to which the configuration gave none; it gives one to each.
const DISK_ID: &str = "_disk";
/// The id of the entropy device unless the client chose one.
const RNG_ID: &str = "__rng";

struct Node {
    address: PciAddress,
    /// The guest may be asked to give it up.
    removable: bool,
    unit: Arc<dyn PciUnit>,
}

/// All devices on the bus.
pub struct DeviceTree {
    segment: Arc<PciSegment>,
    hotplug: Arc<HotplugController>,
    context: PciContext,
    nodes: BTreeMap<String, Node>,
    slots: Slots,
    limit_groups: BTreeMap<String, RateLimit>,
    /// The disks' images, by name.
    disk_images: BTreeMap<String, DiskImage>,
    /// Name and size of the memory balloon.
    balloon: Option<(String, Arc<BalloonSize>)>,
    /// Name and size of the console, and what it leads to.
    console: Option<(String, Arc<ConsoleSize>, CharBackend)>,
    /// The terminal, while the console has it.
    terminal: Option<RawTerminal>,
    /// Firmware's way to the bus.
    config_ports: Option<Arc<PciConfigPorts>>,
    /// Devices that the guest was asked to eject.
    leaving: BTreeSet<String>,
    /// By id: the slot that a device had when the machine was saved.
    kept_slots: BTreeMap<String, u8>,
    /// Nobody looks at the machine while a part of it is taken apart.
    gate: Arc<Gate>,
}

/// The bus and its devices as they are saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusState {
    host_bridge: Vec<u8>,
    /// Only where there is firmware.
    config_address: Option<u32>,
    hotplug: HotplugState,
    /// By id.
    devices: BTreeMap<String, UnitState>,
}

/// A device as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct UnitState {
    slot: u8,
    /// What only the device knows.
    state: Value,
}

/// Why a machine cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A device that is in the machine and not in its configuration.
    #[error("The device {0} is being removed: the guest has yet to eject it")]
    Leaving(String),
    /// A device's interrupts.
    #[error("The interrupts of {0} cannot be saved")]
    Interrupts(String, #[source] InterruptError),
    /// The hypervisor.
    #[error("The hypervisor does not tell its state")]
    Hypervisor(#[from] hypervisor::Error),
}

impl DeviceTree {
    /// A bus with nothing on it but the host bridge.
    pub fn new(
        context: PciContext,
        ports: &Bus,
        line: Arc<MsiVector>,
    ) -> Result<Self, DeviceError> {
        let segment = PciSegment::new(Arc::clone(&context.vm)).map_err(DeviceError::Segment)?;
        let (base, length) = PciSegment::range();
        context
            .mmio
            .insert("pci", base, length, Arc::clone(&segment) as Arc<_>)?;
        let hotplug = hotplug(&segment, line, context.events.clone());
        let (base, length) = HOTPLUG_PORTS;
        let registers = Arc::clone(&hotplug) as Arc<_>;
        ports.insert("hotplug", base.into(), length.into(), registers)?;
        Ok(Self {
            segment,
            hotplug,
            context,
            nodes: BTreeMap::new(),
            slots: Slots::new(),
            limit_groups: BTreeMap::new(),
            disk_images: BTreeMap::new(),
            balloon: None,
            console: None,
            terminal: None,
            config_ports: None,
            leaving: BTreeSet::new(),
            kept_slots: BTreeMap::new(),
            gate: Arc::default(),
        })
    }

    /// Gives firmware its way to the bus.
    pub fn add_config_ports(
        &mut self,
        ports: &Bus,
        reset_control: Arc<ResetControl>,
    ) -> Result<(), BusError> {
        let (base, length) = PCI_CONFIG_PORTS;
        let segment = Arc::clone(&self.segment);
        let device = Arc::new(PciConfigPorts::new(segment, reset_control));
        self.config_ports = Some(Arc::clone(&device));
        ports.insert("pci_ports", base.into(), length.into(), device)
    }

    /// Adds everything that a machine starts with. Its console leads to
    /// `console`.
    pub fn add_all(
        &mut self,
        params: &DeviceParams,
        console: Option<&CharBackend>,
    ) -> Result<(), DeviceError> {
        self.limit_groups = params
            .limit_groups
            .iter()
            .map(|(id, limits)| (id.clone(), RateLimit::new(limits)))
            .collect();
        if let (Some(place), Some(end)) = (&params.console, console) {
            self.add_console(place, end.clone())?;
        }
        for disk in &params.disks {
            self.add_disk(disk)?;
        }
        for net in &params.net {
            self.add_net(net)?;
        }
        if let Some(rng) = &params.rng {
            self.add_rng(rng)?;
        }
        if let Some(vsock) = &params.vsock {
            self.add_vsock(vsock)?;
        }
        if let Some(balloon) = &params.balloon {
            self.add_balloon(balloon)?;
        }
        for device in &params.by_flag {
            self.add_unit(&PciParams::default(), device.id, |id, address, context| {
                (device.create)(id, address, context)
                    .map_err(|source| DeviceError::Flag(id.to_owned(), source))
            })?;
        }
        Ok(())
    }

    /// Adds a disk; says what it is called and where it is.
    pub fn add_disk(
        &mut self,
        disk: &PciDevice<DiskParams>,
    ) -> Result<(String, PciAddress), DeviceError> {
        let params = &disk.params;
        let limit = match &params.limit {
            None => None,
            Some(DiskLimit::Own(limits)) => Some(RateLimit::new(limits)),
            Some(DiskLimit::Group(id)) => self.limit_groups.get(id).cloned(),
        };
        let mut handle = None;
        let disk_images = &self.disk_images.clone();
        let added = self.add(&disk.pci, DISK_ID, |id, events| {
            let image = Image::open(&params.image).map_err(|source| {
                match (&source, user_of(disk_images, &params.image.path)) {
                    (ImageError::Locked(path, _), Some(user)) => {
                        DeviceError::ImageInUse(path.display().to_string(), user)
                    }
                    _ => DeviceError::Image(id.to_owned(), source),
                }
            })?;
            let disk = Block::new(id, image, params, limit.as_ref(), &events)
                .map_err(|source| DeviceError::Disk(id.to_owned(), source))?;
            handle = Some(disk.image());
            Ok(Box::new(disk))
        })?;
        self.disk_images
            .extend(handle.map(|handle| (added.0.clone(), handle)));
        Ok(added)
    }

    /// The format of a disk's image, as it was found.
    #[must_use]
    pub fn image_format(&self, id: &str) -> Option<ImageFormat> {
        self.disk_images.get(id).map(DiskImage::format)
    }

    /// Gives a disk another size and tells the guest.
    pub fn resize_disk(&self, id: &str, bytes: u64) -> Result<(), DeviceError> {
        let (Some(size), Some(node)) = (self.disk_images.get(id), self.nodes.get(id)) else {
            return Err(DeviceError::NoDisk(id.to_owned()));
        };
        size.change(bytes)
            .map_err(|source| DeviceError::Resize(id.to_owned(), source))?;
        node.unit.config_changed();
        Ok(())
    }

    fn add_rng(&mut self, rng: &PciDevice<PathBuf>) -> Result<(), DeviceError> {
        let source = &rng.params;
        self.add(&rng.pci, RNG_ID, |id, events| {
            let failed = |error| DeviceError::Rng(source.display().to_string(), error);
            Ok(Box::new(Rng::new(id, source, events).map_err(failed)?))
        })?;
        Ok(())
    }

    /// Adds a virtio device, which `create` makes.
    fn add(
        &mut self,
        pci: &PciParams,
        default: &str,
        create: impl FnOnce(&str, EventSink) -> Result<Box<dyn VirtioDevice>, DeviceError>,
    ) -> Result<(String, PciAddress), DeviceError> {
        self.add_unit(pci, default, |id, address, context| {
            let device = create(id, context.events.clone())?;
            let function: Arc<_> = VirtioPci::new(id, address, device, context)
                .map_err(|source| DeviceError::Transport(id.to_owned(), source))?;
            Ok(function)
        })
    }

    /// Gives a device its id, `default` if it has none, and a slot, has `create`
    /// make it, and puts it on the bus. Says what its id is and where it is.
    fn add_unit(
        &mut self,
        pci: &PciParams,
        default: &str,
        create: impl FnOnce(&str, PciAddress, &PciContext) -> Result<Arc<dyn PciUnit>, DeviceError>,
    ) -> Result<(String, PciAddress), DeviceError> {
        // As in Cloud Hypervisor, devices of which there is only one stay.
        let removable = !default.starts_with("__");
        let id = pci.id.as_deref().unwrap_or(default).to_owned();
        if self.nodes.contains_key(&id) {
            return Err(DeviceError::Exists(id));
        }
        let address = self
            .slots
            .take(self.kept_slots.get(&id).copied().or(pci.device))
            .map_err(|source| DeviceError::Slot(id.clone(), source))?;
        let unit = match create(&id, address, &self.context) {
            Ok(unit) => unit,
            Err(error) => {
                self.slots.free(address);
                return Err(error);
            }
        };
        self.segment.insert(address, Arc::clone(&unit) as Arc<_>);
        let node = Node {
            address,
            removable,
            unit,
        };
        self.nodes.insert(id.clone(), node);
        Ok((id, address))
    }

    /// Whether a device has this id, be it one that the guest has yet to eject.
    #[must_use]
    pub fn contains(&self, id: &str) -> bool {
        self.nodes.contains_key(id)
    }

    /// Tells the guest of a device that was added while it runs.
    pub fn notify_added(&self, address: PciAddress) {
        self.hotplug.device_added(address.device);
    }

    /// Whether this is a device that cannot be taken away.
    #[must_use]
    pub fn is_fixed(&self, id: &str) -> bool {
        self.nodes.get(id).is_some_and(|node| !node.removable)
    }

    /// Asks the guest to eject a device; false if no device has the id.
    #[must_use]
    pub fn request_unplug(&mut self, id: &str) -> bool {
        let node = self.nodes.get(id);
        if let Some(node) = node {
            self.hotplug.request_unplug(node.address.device);
            self.leaving.insert(id.to_owned());
        }
        node.is_some()
    }

    /// The guest has ejected a device, which is off the bus: its id and its slot
    /// are free from now on. False if no device has the id.
    pub fn ejected(&mut self, id: &str) -> bool {
        let Some(node) = self.nodes.remove(id) else {
            return false;
        };
        self.disk_images.remove(id);
        self.leaving.remove(id);
        // What was reported of it must not be read as a report of the next device
        // in its slot.
        self.hotplug.forget(node.address.device);
        let address = node.address;
        self.gate.closed(|| drop(node));
        self.slots.free(address);
        log::info!("the device {id} is removed");
        true
    }

    /// Tells the guest that somebody wants it to shut down.
    pub fn press_power_button(&self) {
        self.hotplug.press_power_button();
    }

    /// The bus, its devices and what the guest has yet to hear of them, while
    /// they are paused.
    ///
    /// # Errors
    /// A device is leaving, or interrupts on their way cannot be waited for.
    pub fn save(&self) -> Result<BusState, SaveError> {
        if let Some(id) = self.leaving.first() {
            return Err(SaveError::Leaving(id.clone()));
        }
        let devices = self.nodes.iter().map(|(id, node)| {
            let slot = node.address.device;
            let state = node.unit.save();
            state
                .map(|state| (id.clone(), UnitState { slot, state }))
                .map_err(|source| SaveError::Interrupts(id.clone(), source))
        });
        Ok(BusState {
            host_bridge: self.segment.host_bridge().to_vec(),
            config_address: self.config_ports.as_ref().map(|ports| ports.address()),
            hotplug: self.hotplug.save(),
            devices: devices.collect::<Result<_, _>>()?,
        })
    }

    /// Has devices that are added get the slots that they had.
    pub fn keep_slots(&mut self, state: &BusState) {
        let slots = state.devices.iter();
        self.kept_slots = slots
            .map(|(id, device)| (id.clone(), device.slot))
            .collect();
    }

    /// Makes bus and devices what was saved. The devices are there, as after a
    /// reset, and they are paused.
    ///
    /// # Errors
    /// It is the state of other devices, or the host does not do what one takes.
    pub fn restore(&self, state: &BusState) -> Result<(), StateError> {
        let BusState {
            host_bridge,
            config_address,
            hotplug,
            devices,
        } = state;
        if let Some(unknown) = devices.keys().find(|id| !self.nodes.contains_key(*id)) {
            return Err(StateError::Unknown(unknown.clone()));
        }
        for (id, node) in &self.nodes {
            let device = devices.get(id);
            let device = device.ok_or_else(|| StateError::Missing(id.clone()))?;
            node.unit.restore(&device.state)?;
            self.segment.refresh(node.address);
        }
        self.segment
            .restore_host_bridge(host_bridge)
            .map_err(|error| StateError::unfit("the host bridge", &error))?;
        if let (Some(ports), Some(address)) = (&self.config_ports, config_address) {
            ports.set_address(*address);
        }
        self.hotplug.restore(hotplug);
        Ok(())
    }

    /// Has every device leave guest memory and interrupts alone, and waits until
    /// they do.
    pub fn pause(&self) {
        for node in self.nodes.values() {
            node.unit.pause();
        }
    }

    /// Has the devices go on.
    pub fn resume(&self) {
        for node in self.nodes.values() {
            node.unit.resume();
        }
    }

    /// The devices for `vm.info`. One that hangs from a function with an id of its own
    /// is there twice, as what the guest's driver sees and as that function.
    #[must_use]
    pub fn tree(&self) -> BTreeMap<String, DeviceNode> {
        let nodes = self.nodes.iter().flat_map(|(id, node)| {
            let bdf = Some(node.address.to_string());
            let (base, size) = node.unit.bar();
            let bar = json!({"PciBar": {
                "index": 0, "base": base, "size": size, "type_": "Memory32",
                "prefetchable": false,
            }});
            let function_id = node.unit.function_id();
            let device = function_id.as_ref().map(|function| DeviceNode {
                id: id.clone(),
                parent: Some(function.clone()),
                pci_bdf: bdf.clone(),
                ..Default::default()
            });
            let function = DeviceNode {
                children: device.iter().map(|device| device.id.clone()).collect(),
                id: function_id.unwrap_or_else(|| id.clone()),
                resources: vec![bar],
                pci_bdf: bdf,
                ..Default::default()
            };
            device.into_iter().chain([function])
        });
        nodes.map(|node| (node.id.clone(), node)).collect()
    }

    /// Reads the counters of all devices as they are at the time of the call,
    /// on whatever thread.
    #[must_use]
    pub fn counters(&self) -> Arc<dyn Fn() -> VmCounters + Send + Sync> {
        let devices: Vec<(String, Arc<dyn DeviceCounters>)> = self
            .nodes
            .iter()
            .filter_map(|(id, node)| Some((id.clone(), node.unit.counters()?)))
            .collect();
        Arc::new(move || {
            devices
                .iter()
                .map(|(id, counters)| (id.clone(), counters.read()))
                .collect()
        })
    }
}

/// The disk among these whose image is in the file at `path`.
fn user_of(images: &BTreeMap<String, DiskImage>, path: &Path) -> Option<String> {
    let id = FileId::at(path).ok()?;
    let user = images.iter().find(|(_, image)| image.id() == id);
    user.map(|(name, _)| name.clone())
}

/// The registers through which the guest hears of devices that come and go.
fn hotplug(
    segment: &Arc<PciSegment>,
    line: Arc<MsiVector>,
    events: EventSink,
) -> Arc<HotplugController> {
    let segment = Arc::clone(segment);
    Arc::new(HotplugController::new(line, move |device| {
        // The guest must not find it any more once its write is done; what
        // else there is to do, the control thread does.
        if let Some(id) = segment.eject(PciAddress { device }) {
            events.send(MachineEvent::Ejected(id));
        }
    }))
}

#[cfg(test)]
mod tests;
