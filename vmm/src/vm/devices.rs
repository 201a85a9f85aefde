//! The devices on the PCI bus: named, placed, added and removed. Belongs to
//! the control thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use api_client::types::{DeviceNode, VmCounters};

use crate::bus::BusError;
use crate::config::{DeviceParams, PciParams, RngParams};
use crate::event::EventSink;
use crate::memory::MemoryError;
use crate::pci::{PciAddress, PciSegment, SegmentError};
use crate::virtio::rng::Rng;
use crate::virtio::transport::pci::{PciPlatform, TransportError, VirtioPci};
use crate::virtio::{DeviceCounters, VirtioDevice};

/// Why a device cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Another device has the name.
    #[error("There is a device called {0} already")]
    Exists(String),
    /// No place on the bus.
    #[error("The device {0} cannot be placed")]
    Place(String, #[source] SegmentError),
    /// No registers.
    #[error("The device {0} cannot be connected")]
    Transport(String, #[source] TransportError),
    /// The bus itself.
    #[error("The PCI bus cannot be set up")]
    Segment(#[source] MemoryError),
    /// The bus' registers.
    #[error("The PCI bus cannot be placed")]
    Bus(#[from] BusError),
    /// The source of random bytes.
    #[error("The entropy device's source {0} cannot be used")]
    Rng(String, #[source] std::io::Error),
}

/// Name that an entropy device has unless the client chose one.
const RNG_ID: &str = "__rng";

struct Entry {
    address: PciAddress,
    function: Arc<VirtioPci>,
}

/// All devices on the bus.
pub struct DeviceSet {
    segment: Arc<PciSegment>,
    platform: PciPlatform,
    events: EventSink,
    entries: BTreeMap<String, Entry>,
}

impl DeviceSet {
    /// A bus with nothing on it but the host bridge.
    pub fn new(platform: PciPlatform, events: EventSink) -> Result<Self, DeviceError> {
        let segment = PciSegment::new(Arc::clone(&platform.vm)).map_err(DeviceError::Segment)?;
        let (base, length) = PciSegment::range();
        platform
            .mmio
            .insert("pci", base, length, Arc::clone(&segment) as Arc<_>)?;
        Ok(Self {
            segment,
            platform,
            events,
            entries: BTreeMap::new(),
        })
    }

    /// Adds everything that a machine starts with.
    pub fn add_all(&mut self, params: &DeviceParams) -> Result<(), DeviceError> {
        if let Some(rng) = &params.rng {
            self.add_rng(rng)?;
        }
        Ok(())
    }

    fn add_rng(&mut self, params: &RngParams) -> Result<(), DeviceError> {
        self.add(&params.pci, RNG_ID, |id, events| {
            let failed = |source| DeviceError::Rng(params.source.display().to_string(), source);
            Ok(Box::new(
                Rng::new(id, &params.source, events).map_err(failed)?,
            ))
        })?;
        Ok(())
    }

    /// Names and places a device, has `create` make it, and puts it on the
    /// bus. Says what it is called and where it is.
    fn add(
        &mut self,
        pci: &PciParams,
        default_id: &str,
        create: impl FnOnce(&str, EventSink) -> Result<Box<dyn VirtioDevice>, DeviceError>,
    ) -> Result<(String, PciAddress), DeviceError> {
        let id = pci.id.clone().unwrap_or_else(|| default_id.to_owned());
        if self.entries.contains_key(&id) {
            return Err(DeviceError::Exists(id));
        }
        let address = self
            .segment
            .reserve(pci.device)
            .map_err(|source| DeviceError::Place(id.clone(), source))?;
        let function = create(&id, self.events.clone()).and_then(|device| {
            VirtioPci::new(&id, address, device, self.platform.clone())
                .map_err(|source| DeviceError::Transport(id.clone(), source))
        });
        let function = match function {
            Ok(function) => function,
            Err(error) => {
                self.segment.remove(address);
                return Err(error);
            }
        };
        self.segment
            .insert(address, Arc::clone(&function) as Arc<_>);
        self.entries.insert(id.clone(), Entry { address, function });
        Ok((id, address))
    }

    /// The devices for `vm.info`.
    #[must_use]
    pub fn tree(&self) -> BTreeMap<String, DeviceNode> {
        self.entries
            .iter()
            .map(|(id, entry)| {
                let node = DeviceNode {
                    id: id.clone(),
                    pci_bdf: Some(entry.address.to_string()),
                    ..Default::default()
                };
                (id.clone(), node)
            })
            .collect()
    }

    /// Reads the figures of all devices as they are at the time of the call,
    /// on whatever thread.
    #[must_use]
    pub fn counters(&self) -> Arc<dyn Fn() -> VmCounters + Send + Sync> {
        let devices: Vec<(String, Arc<dyn DeviceCounters>)> = self
            .entries
            .iter()
            .filter_map(|(id, entry)| Some((id.clone(), entry.function.counters()?)))
            .collect();
        Arc::new(move || {
            devices
                .iter()
                .map(|(id, counters)| (id.clone(), counters.read()))
                .collect()
        })
    }
}
