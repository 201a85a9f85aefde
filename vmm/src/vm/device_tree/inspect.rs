//! Devices as an inspection shows them.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use api_client::inspect::{InspectNode, InspectValue};

use super::DeviceTree;
use crate::inspect::{Gate, Inside, Scope};
use crate::pci::{PciAddress, PciUnit};

/// The way to look at a device. It does not keep the device.
pub struct DeviceView {
    id: String,
    address: PciAddress,
    removable: bool,
    /// The guest was asked to eject it.
    leaving: bool,
    family: &'static str,
    unit: Weak<dyn PciUnit>,
}

impl DeviceTree {
    /// Closed while a part of the machine is taken apart.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The ways to look at the devices.
    #[must_use]
    pub fn views(&self) -> Vec<DeviceView> {
        let nodes = self.nodes.iter();
        nodes
            .map(|(id, node)| DeviceView {
                id: id.clone(),
                address: node.address,
                removable: node.removable,
                leaving: self.leaving.contains(id),
                family: node.unit.family(),
                unit: Arc::downgrade(&node.unit),
            })
            .collect()
    }
}

/// Adds the bus, and what sits in its slots.
pub fn inspect_bus(devices: &[DeviceView], scope: &Scope<'_>, root: &mut InspectNode) {
    scope.add(root, "pci", |scope, node| {
        let bridge = PciAddress { device: 0 };
        scope.add(node, &bridge.to_string(), |_, node| {
            node.set("kind", "host bridge");
        });
        for device in devices {
            scope.add(node, &device.address.to_string(), |_, node| {
                node.set("device", device.id.as_str());
                node.set("removable", device.removable);
                node.set("unplug_pending", device.leaving);
                if let Some(unit) = device.unit.upgrade() {
                    let (base, size) = unit.inspect_bar();
                    match base {
                        Some(base) => node.set("bar0", InspectValue::hex(base)),
                        None => node.set("bar0", "not placed"),
                    }
                    node.set("bar0_size", size);
                }
            });
        }
    });
}

/// Adds the devices. All of a family's threads are asked before the first is waited
/// for.
pub fn inspect_devices(
    devices: &[DeviceView],
    scope: &Scope<'_>,
    root: &mut InspectNode,
    inside: &Inside<'_>,
) {
    let families: BTreeSet<&str> = devices.iter().map(|device| device.family).collect();
    for family in families {
        scope.add(root, family, |scope, node| {
            let units: Vec<_> = devices
                .iter()
                .filter(|device| device.family == family)
                .map(|device| {
                    let unit = device.unit.upgrade();
                    if let (Some(unit), Some(_)) = (&unit, scope.part(&device.id)) {
                        unit.ask();
                    }
                    (device, unit)
                })
                .collect();
            for (device, unit) in units {
                scope.add(node, &device.id, |scope, node| match unit {
                    Some(unit) => unit.inspect(scope, node, inside),
                    None => node.lacks("the device is gone"),
                });
            }
        });
    }
}
