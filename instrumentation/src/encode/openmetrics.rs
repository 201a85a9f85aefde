//! OpenMetrics text, for Prometheus and whatever else scrapes.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::snapshot::{
    DeviceExits, ExitCounters, ExitSnapshot, ReasonCounters, ReasonLatency, Source, Totals,
};
use crate::table::Isa;

/// The content type of [`openmetrics`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How finely metrics are divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// One series a VM and reason, however many vCPUs the VM has.
    #[default]
    Vm,
    /// One series a vCPU and reason.
    Vcpu,
}

/// The statistics of VMs, each under the name by which its operator knows it,
/// by vCPU. Reasons that never occurred have no series.
pub fn openmetrics(vms: &[(&str, &ExitSnapshot)]) -> String {
    let vms = vms
        .iter()
        .map(|(name, snapshot)| (name.to_string(), (*snapshot).clone()));
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Vms {
        vms: vms.collect(),
        module_version: None,
        detail: Detail::Vcpu,
    }));
    text_of(&registry)
}

/// A VM of a host.
#[derive(Debug)]
pub struct VmMetrics {
    /// Its name in metrics.
    pub name: String,
    /// Its statistics, or in a word why there are none.
    pub snapshot: Result<ExitSnapshot, &'static str>,
}

/// What is known of a host.
#[derive(Debug, Default)]
pub struct HostMetrics {
    /// Its VMs; no name occurs twice.
    pub vms: Vec<VmMetrics>,
    /// Which KVM module it has.
    pub module_version: Option<String>,
    /// Whether that counts exits by reason now.
    pub module_counts: bool,
    /// Folders in which VMs could not be looked for.
    pub unreadable_folders: usize,
    /// How finely its VMs are shown.
    pub detail: Detail,
}

/// The metrics of a host, some of whose VMs may not have answered:
/// `kvm_exit_stats_up` is 1 for each that did and 0 for the others, of which
/// `kvm_exit_stats_down` says the reason.
pub fn openmetrics_of_host(host: HostMetrics) -> String {
    let mut answered = Vec::new();
    let mut states = Vec::new();
    for vm in host.vms {
        states.push((vm.name.clone(), vm.snapshot.as_ref().err().copied()));
        answered.extend(vm.snapshot.ok().map(|snapshot| (vm.name, snapshot)));
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(States {
        states,
        module_counts: host.module_counts,
        unreadable_folders: host.unreadable_folders,
    }));
    registry.register_collector(Box::new(Vms {
        vms: answered,
        module_version: host.module_version,
        detail: host.detail,
    }));
    text_of(&registry)
}

fn text_of(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, and the collector has no error of its own.
    let _ = encode(&mut text, registry);
    text
}

/// Whether the host counts, and which VMs answered.
#[derive(Debug)]
struct States {
    /// By VM why it is down, if it is.
    states: Vec<(String, Option<&'static str>)>,
    module_counts: bool,
    unreadable_folders: usize,
}

impl Collector for States {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        encoder
            .encode_descriptor(
                "kvm_exit_stats_host_counts",
                "Whether the KVM of this host counts exits by reason now",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&i64::from(self.module_counts))?;
        encoder
            .encode_descriptor(
                "kvm_exit_stats_unreadable_folders",
                "Folders in which sockets could not be looked for",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&i64::try_from(self.unreadable_folders).unwrap_or(i64::MAX))?;
        gauges(
            &mut encoder,
            "kvm_exit_stats_up",
            "Whether the VM answered",
            self.states
                .iter()
                .map(|(vm, down)| (vec![("vm", vm.as_str().into())], down.is_none().into())),
        )?;
        gauges(
            &mut encoder,
            "kvm_exit_stats_down",
            "Why the VM gave no statistics",
            self.states.iter().filter_map(|(vm, down)| {
                let labels = vec![("vm", vm.as_str().into()), ("reason", (*down)?.into())];
                Some((labels, 1))
            }),
        )
    }
}

#[derive(Debug)]
struct Vms {
    vms: Vec<(String, ExitSnapshot)>,
    module_version: Option<String>,
    detail: Detail,
}

type Labels<'a> = Vec<(&'static str, std::borrow::Cow<'a, str>)>;

impl Collector for Vms {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        self.descriptions(&mut encoder)?;
        self.totals_family(
            &mut encoder,
            (
                "kvm_vm_exits",
                "VM exits of all vCPUs, as KVM itself counts them",
            ),
            None,
            Detail::Vm,
            |totals| totals.kvm_exits.or(Some(totals.exits)),
        )?;
        if self.detail == Detail::Vcpu {
            self.totals_family(
                &mut encoder,
                ("kvm_vcpu_exits", "VM exits, as KVM itself counts them"),
                None,
                Detail::Vcpu,
                |totals| totals.kvm_exits.or(Some(totals.exits)),
            )?;
        }
        self.totals_family(
            &mut encoder,
            ("kvm_guest", "Time running guest code"),
            Some(&Unit::Seconds),
            self.detail,
            |totals| totals.guest_cycles,
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
        self.reason_family(
            &mut encoder,
            "kvm_exit_preempted",
            "Time after an exit that the vCPU had no CPU, because another task had it",
            Some(&Unit::Seconds),
            |counters| counters.preempted_cycles,
        )?;
        self.latency_family(&mut encoder)?;
        self.vmm_families(&mut encoder)
    }
}

impl Vms {
    /// What each VM is and whether its exits are counted by reason.
    fn descriptions(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        gauges(
            encoder,
            "kvm_exit_stats_info",
            "Where the VM's statistics come from",
            self.vms.iter().map(|(vm, snapshot)| {
                let source = match snapshot.source {
                    Source::ExitStats => "kvm-exit-stats",
                    Source::Kvm => "kvm",
                };
                let isa = snapshot.isa.map_or("", Isa::as_str);
                let mut labels: Labels = vec![
                    ("vm", vm.as_str().into()),
                    ("source", source.into()),
                    ("isa", isa.into()),
                ];
                if let Some(version) = &self.module_version {
                    labels.push(("module_version", version.as_str().into()));
                }
                (labels, 1)
            }),
        )?;
        gauges(
            encoder,
            "kvm_exit_stats_available",
            "Whether the VM's exits are counted by reason; 0 where its host's KVM does not count",
            self.vms.iter().map(|(vm, snapshot)| {
                let counts = snapshot.source == Source::ExitStats;
                (vec![("vm", vm.as_str().into())], counts.into())
            }),
        )?;
        gauges(
            encoder,
            "kvm_exit_stats_running",
            "Whether the VM has not ended; 0 where its counters are its last ones",
            self.vms
                .iter()
                .map(|(vm, snapshot)| (vec![("vm", vm.as_str().into())], (!snapshot.ended).into())),
        )?;
        gauges(
            encoder,
            "kvm_exit_stats_vcpus",
            "vCPUs of the VM",
            self.vms.iter().map(|(vm, snapshot)| {
                let vcpus = i64::try_from(snapshot.vcpus.len()).unwrap_or(i64::MAX);
                (vec![("vm", vm.as_str().into())], vcpus)
            }),
        )
    }

    fn totals_family(
        &self,
        encoder: &mut DescriptorEncoder,
        (name, help): (&str, &str),
        unit: Option<&Unit>,
        detail: Detail,
        value: fn(&Totals) -> Option<u64>,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (vm, snapshot) in &self.vms {
            let tsc_khz = snapshot.tsc_khz;
            if detail == Detail::Vm {
                if let Some(value) = value(&snapshot.totals) {
                    let labels: Labels = vec![("vm", vm.as_str().into())];
                    put(&mut family, &labels, value, unit, tsc_khz)?;
                }
                continue;
            }
            for vcpu in &snapshot.vcpus {
                if let Some(value) = value(&vcpu.totals) {
                    let id = vcpu.id.to_string();
                    let labels: Labels = vec![("vm", vm.as_str().into()), ("vcpu", id.into())];
                    put(&mut family, &labels, value, unit, tsc_khz)?;
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
        for (vm, snapshot) in &self.vms {
            let mut put_rows = |rows: &Option<Vec<ReasonCounters>>, vcpu: Option<u32>| {
                let rows = rows.iter().flatten();
                for row in rows.filter(|row| !row.counters.is_zero()) {
                    let mut labels: Labels = vec![("vm", vm.as_str().into())];
                    if let Some(vcpu) = vcpu {
                        labels.push(("vcpu", vcpu.to_string().into()));
                    }
                    labels.push(("reason", row.symbol.as_ref().into()));
                    let value = value(&row.counters);
                    put(&mut family, &labels, value, unit, snapshot.tsc_khz)?;
                }
                Ok(())
            };
            match self.detail {
                Detail::Vm => put_rows(&snapshot.reasons, None)?,
                Detail::Vcpu => {
                    for vcpu in &snapshot.vcpus {
                        put_rows(&vcpu.reasons, Some(vcpu.id))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Histograms, of VMs that keep them. The kernel keeps no sum beside them: it is
    /// not a number.
    fn latency_family(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        if self
            .vms
            .iter()
            .all(|(_, snapshot)| snapshot.latency.is_none())
        {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(
            "kvm_exit_latency",
            "How long exits took in the kernel, of VMs that keep histograms",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (vm, snapshot) in &self.vms {
            for row in snapshot.latency.iter().flat_map(|latency| &latency.reasons) {
                let labels: Labels = vec![
                    ("vm", vm.as_str().into()),
                    ("reason", row.symbol.as_str().into()),
                ];
                let buckets = classic_buckets(row, snapshot.tsc_khz);
                family
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(f64::NAN, row.exits(), &buckets, None)?;
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
            for (vm, snapshot) in &self.vms {
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

/// Every other power of two from 64 ticks on, always the same ones, so that
/// buckets of several VMs can be added; the last has no bound.
fn classic_buckets(row: &ReasonLatency, tsc_khz: u32) -> Vec<(f64, u64)> {
    let hertz = f64::from(tsc_khz.max(1)) * 1000.0;
    let mut below = 0;
    let mut buckets: Vec<(f64, u64)> = (6..=38)
        .step_by(2)
        .map(|power| {
            let bound = 1u64 << power;
            let inside = row.buckets.iter().filter(|bucket| {
                bucket
                    .below_ticks
                    .is_some_and(|ticks| ticks > below && ticks <= bound)
            });
            let exits = inside.map(|bucket| bucket.exits).sum();
            below = bound;
            (bound as f64 / hertz, exits)
        })
        .collect();
    let inside: u64 = buckets.iter().map(|(_, exits)| exits).sum();
    buckets.push((f64::INFINITY, row.exits() - inside));
    buckets
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

/// A family of gauges.
fn gauges<'a>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (Labels<'a>, i64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
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
