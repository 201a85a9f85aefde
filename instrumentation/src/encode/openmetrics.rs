//! OpenMetrics text, for Prometheus and whatever else scrapes.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::snapshot::{DeviceExits, ExitCounters, ExitSnapshot};

/// The content type of [`openmetrics`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The figures of any number of VMs, each under the name by which its operator
/// knows it. Reasons that never occurred have no series.
pub fn openmetrics(vms: &[(&str, &ExitSnapshot)]) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(vms_of(vms.iter().copied())));
    text_of(&registry)
}

/// The same for a whole host, some of whose VMs may not have answered: the
/// gauge `kvm_exit_stats_up` is 1 for each that did and 0 for the others.
pub fn openmetrics_of_host(vms: &[(&str, Option<&ExitSnapshot>)]) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Up(vms
        .iter()
        .map(|(name, snapshot)| (name.to_string(), snapshot.is_some()))
        .collect())));
    let answered = vms
        .iter()
        .filter_map(|(name, snapshot)| snapshot.map(|snapshot| (*name, snapshot)));
    registry.register_collector(Box::new(vms_of(answered)));
    text_of(&registry)
}

fn vms_of<'a>(vms: impl Iterator<Item = (&'a str, &'a ExitSnapshot)>) -> Vms {
    Vms(vms
        .map(|(name, snapshot)| (name.to_string(), snapshot.clone()))
        .collect())
}

fn text_of(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, and the collector has no error of its own.
    let _ = encode(&mut text, registry);
    text
}

/// Which VMs answered.
#[derive(Debug)]
struct Up(Vec<(String, bool)>);

impl Collector for Up {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "kvm_exit_stats_up",
            "Whether the VM answered",
            None,
            MetricType::Gauge,
        )?;
        for (vm, up) in &self.0 {
            let labels: Labels = vec![("vm", vm.as_str().into())];
            family
                .encode_family(&labels)?
                .encode_gauge(&i64::from(*up))?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Vms(Vec<(String, ExitSnapshot)>);

type Labels<'a> = Vec<(&'static str, std::borrow::Cow<'a, str>)>;

impl Collector for Vms {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        self.vcpu_family(
            &mut encoder,
            "kvm_vcpu_exits",
            "VM exits, as KVM itself counts them or as the sum over all reasons",
            None,
            |vcpu| Some(vcpu.totals.exits),
        )?;
        self.vcpu_family(
            &mut encoder,
            "kvm_guest",
            "Time running guest code",
            Some(&Unit::Seconds),
            |vcpu| vcpu.totals.guest_cycles,
        )?;
        self.reason_family(
            &mut encoder,
            "kvm_exits",
            "VM exits by reason",
            None,
            |counters| counters.exits,
        )?;
        self.reason_family(
            &mut encoder,
            "kvm_exit",
            "Time in the kernel from VM exit to next entry, without sleep and user space",
            Some(&Unit::Seconds),
            |counters| counters.cycles,
        )?;
        self.reason_family(
            &mut encoder,
            "kvm_exit_blocked",
            "Time that the vCPU slept in the kernel after an exit",
            Some(&Unit::Seconds),
            |counters| counters.blocked_cycles,
        )?;
        self.reason_family(
            &mut encoder,
            "kvm_exit_userspace",
            "Time that the vCPU was out in user space after an exit",
            Some(&Unit::Seconds),
            |counters| counters.userspace_cycles,
        )?;
        self.vmm_families(&mut encoder)
    }
}

impl Vms {
    fn vcpu_family(
        &self,
        encoder: &mut DescriptorEncoder,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: fn(&crate::snapshot::VcpuSnapshot) -> Option<u64>,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (vm, snapshot) in &self.0 {
            for vcpu in &snapshot.vcpus {
                if let Some(value) = value(vcpu) {
                    let labels: Labels = vec![
                        ("vm", vm.as_str().into()),
                        ("vcpu", vcpu.id.to_string().into()),
                    ];
                    put(&mut family, &labels, value, unit, snapshot.tsc_khz)?;
                }
            }
        }
        Ok(())
    }

    fn reason_family(
        &self,
        encoder: &mut DescriptorEncoder,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: fn(&ExitCounters) -> u64,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (vm, snapshot) in &self.0 {
            for vcpu in &snapshot.vcpus {
                let rows = vcpu.reasons.iter().flatten();
                for row in rows.filter(|row| !row.counters.is_zero()) {
                    let labels: Labels = vec![
                        ("vm", vm.as_str().into()),
                        ("vcpu", vcpu.id.to_string().into()),
                        ("reason", row.symbol.as_ref().into()),
                    ];
                    let value = value(&row.counters);
                    put(&mut family, &labels, value, unit, snapshot.tsc_khz)?;
                }
            }
        }
        Ok(())
    }

    fn vmm_families(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        for unit in [None, Some(&Unit::Seconds)] {
            let (name, help) = match unit {
                None => ("vmm_exits", "Exits that reached user space"),
                Some(_) => ("vmm_exit", "Time that user space took to serve exits"),
            };
            let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
            for (vm, snapshot) in &self.0 {
                for row in &snapshot.vmm.exits {
                    let kind: Labels = vec![
                        ("vm", vm.as_str().into()),
                        ("kind", row.kind.as_str().into()),
                    ];
                    if row.devices.is_empty() {
                        put_vmm(&mut family, &kind, unit, row.exits, row.nanoseconds)?;
                    }
                    for ((id, range, size), (exits, nanoseconds)) in by_range(&row.devices) {
                        let mut labels = kind.clone();
                        labels.push(("device", id.into()));
                        labels.push(("address", range.into()));
                        labels.push(("size", size.to_string().into()));
                        put_vmm(&mut family, &labels, unit, exits, nanoseconds)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Registers would be too many series, and a guest decides how many there are:
/// they are summed by device, range and width.
fn by_range(devices: &[DeviceExits]) -> BTreeMap<(&str, &str, u8), (u64, u64)> {
    let mut sums = BTreeMap::new();
    for device in devices {
        let range = device.range.as_deref().unwrap_or_default();
        let key = (device.id.as_str(), range, device.size);
        let (exits, nanoseconds) = sums.entry(key).or_insert((0u64, 0u64));
        *exits += device.exits;
        *nanoseconds += device.nanoseconds;
    }
    sums
}

fn put(
    family: &mut prometheus_client::encoding::MetricEncoder,
    labels: &impl EncodeLabelSet,
    value: u64,
    unit: Option<&Unit>,
    tsc_khz: u32,
) -> fmt::Result {
    let mut metric = family.encode_family(labels)?;
    match unit {
        None => metric.encode_counter::<NoLabelSet, u64, u64>(&value, None),
        Some(_) if tsc_khz == 0 => metric.encode_counter::<NoLabelSet, f64, u64>(&f64::NAN, None),
        Some(_) => {
            let seconds = value as f64 / (f64::from(tsc_khz) * 1000.0);
            metric.encode_counter::<NoLabelSet, f64, u64>(&seconds, None)
        }
    }
}

fn put_vmm(
    family: &mut prometheus_client::encoding::MetricEncoder,
    labels: &impl EncodeLabelSet,
    unit: Option<&Unit>,
    exits: u64,
    nanoseconds: u64,
) -> fmt::Result {
    let mut metric = family.encode_family(labels)?;
    match unit {
        None => metric.encode_counter::<NoLabelSet, u64, u64>(&exits, None),
        Some(_) => {
            let seconds = nanoseconds as f64 / 1e9;
            metric.encode_counter::<NoLabelSet, f64, u64>(&seconds, None)
        }
    }
}
