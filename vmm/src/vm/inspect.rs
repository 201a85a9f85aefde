//! A booted machine as an inspection shows it.
//!
//! What is published here keeps nothing of the machine: its parts are got hold of
//! only inside its gate, which the control thread closes before it takes any of
//! them apart.

use std::sync::Arc;

use api_client::inspect::{InspectNode, InspectValue};
use instrumentation::snapshot::{ExitSnapshot, Query};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::device_tree::{DeviceView, inspect_bus, inspect_devices};
use super::machine::Machine;
use crate::api::InspectMachine;
use crate::inspect::{Gate, Inside, Scope};
use crate::sandbox::{ThreadKind, threads};
use crate::stats::StatsHub;
use crate::vcpu::VcpuView;

/// A range of the guest's memory.
struct Region {
    address: u64,
    size: u64,
    backing: &'static str,
}

/// The way to look at a machine.
struct MachineView {
    gate: Arc<Gate>,
    /// By slot of the hypervisor.
    regions: Vec<Region>,
    vcpus: Vec<VcpuView>,
    devices: Vec<DeviceView>,
    stats: Arc<StatsHub>,
}

impl Machine {
    /// A way to look at the machine, whose vCPUs' statistics are in `stats`.
    #[must_use]
    pub fn view(&self, stats: &Arc<StatsHub>) -> Arc<dyn InspectMachine> {
        let regions = self.ram.iter();
        Arc::new(MachineView {
            gate: Arc::clone(self.devices.gate()),
            regions: regions
                .map(|region| Region {
                    address: region.start_addr().0,
                    size: region.len(),
                    backing: region.backing_name(),
                })
                .collect(),
            vcpus: self.vcpus.iter().map(|vcpu| vcpu.view()).collect(),
            devices: self.devices.views(),
            stats: Arc::clone(stats),
        })
    }
}

impl InspectMachine for MachineView {
    fn inspect(&self, scope: &Scope<'_>, root: &mut InspectNode) {
        self.inspect_memory(scope, root);
        let Some(inside) = self.gate.enter() else {
            root.lacks("vcpus, pci, virtio: the machine is being taken apart");
            // Named all the same: they exist.
            for name in ["vcpus", "pci", "virtio"] {
                scope.add(root, name, |_, node| {
                    node.lacks("the machine is being taken apart");
                });
            }
            return;
        };
        self.inspect_vcpus(scope, root, &inside);
        inspect_bus(&self.devices, scope, root);
        inspect_devices(&self.devices, scope, root, &inside);
    }
}

impl MachineView {
    fn inspect_memory(&self, scope: &Scope<'_>, root: &mut InspectNode) {
        scope.add(root, "memory", |scope, node| {
            let total: u64 = self.regions.iter().map(|region| region.size).sum();
            node.set("size", total);
            for (slot, region) in self.regions.iter().enumerate() {
                scope.add(node, &format!("region{slot}"), |_, node| {
                    node.set("address", InspectValue::hex(region.address));
                    node.set("size", region.size);
                    node.set("backing", region.backing);
                });
            }
        });
    }

    fn inspect_vcpus(&self, scope: &Scope<'_>, root: &mut InspectNode, inside: &Inside<'_>) {
        scope.add(root, "vcpus", |scope, node| {
            let snapshot = self.stats.snapshot(&Query::default());
            let threads = threads();
            for (id, vcpu) in self.vcpus.iter().enumerate() {
                scope.add(node, &id.to_string(), |scope, node| {
                    let name = format!("vcpu{id}");
                    let mut own = threads.iter();
                    let own =
                        own.find(|thread| thread.kind == ThreadKind::Vcpu && thread.name == name);
                    node.set("thread_name", name.as_str());
                    if let Some(thread) = own {
                        node.set("thread", u64::from(thread.id));
                    }
                    match &snapshot {
                        Ok(snapshot) => count_exits(snapshot, id, node),
                        Err(error) => node.lacks(format!("exits: {error}")),
                    }
                    vcpu.inspect(scope, node, inside, self.stats.is_blocking(id));
                });
            }
        });
    }
}

fn count_exits(snapshot: &ExitSnapshot, id: usize, node: &mut InspectNode) {
    let Some(vcpu) = snapshot.vcpus.get(id) else {
        return;
    };
    node.count("exits", vcpu.totals.exits);
    for (name, ticks) in [
        ("cycles", vcpu.totals.cycles),
        ("blocked_cycles", vcpu.totals.blocked_cycles),
        ("userspace_cycles", vcpu.totals.userspace_cycles),
        ("preempted_cycles", vcpu.totals.preempted_cycles),
        ("guest_cycles", vcpu.totals.guest_cycles),
    ] {
        if let Some(ticks) = ticks {
            node.count(name, ticks);
        }
    }
    if let Some(own) = &vcpu.vmm {
        let to_user_space = own.exits.iter().map(|row| row.exits).sum();
        node.count("exits_to_user_space", to_user_space);
    }
}
