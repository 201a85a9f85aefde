//! A function as an inspection shows it: the registers by the lock of the
//! function, the positions in the queues by the threads that serve them, the
//! indices from the guest's memory.
//!
//! Whoever waits for the device's threads holds the lock for as long as that
//! takes. What an inspection then shows of the registers is what they were
//! before, which is [`Remembered`].

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use api_client::inspect::{InspectNode, InspectValue};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

use super::common::{CommonState, QueueSetupState};
use super::function::{State, VirtioPci};
use super::{BAR_SIZE, NOTIFY, NOTIFY_STEP};
use crate::inspect::{Inside, Scope};
use crate::pci::{MsixVectorView, NO_VECTOR, PciUnit, show_counters};
use crate::virtio::QueuePosition;
use crate::virtio::features::{feature_names, kind_name, status_names};
use crate::virtio::status::NEEDS_RESET;
use crate::virtio::worker::WorkerReading;

/// How long to try for the lock of the registers, which guests hold for moments.
const LOCK_PATIENCE: Duration = Duration::from_millis(2);

/// The registers as they were seen.
pub(super) struct Remembered {
    common: CommonState,
    active: bool,
    bar: Option<u64>,
    msix_enabled: bool,
    msix_masked: bool,
    vectors: Vec<MsixVectorView>,
}

impl Remembered {
    fn of(state: &State) -> Self {
        let (msix_enabled, msix_masked) = state.msix_capability.state(&state.config);
        Self {
            common: state.common.save(),
            active: state.active,
            bar: state.placer.at(),
            msix_enabled,
            msix_masked,
            vectors: state.table.vectors().collect(),
        }
    }
}

impl VirtioPci {
    /// Keeps what the registers are for inspections: the caller is about to wait
    /// for the device's threads.
    pub(super) fn remember(&self, state: &State) {
        *self.remembered() = Some(Remembered::of(state));
    }

    fn remembered(&self) -> MutexGuard<'_, Option<Remembered>> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the device's threads, and does not wait for them.
    pub(super) fn ask_workers(&self) {
        for probe in &self.probes {
            probe.ask();
        }
    }

    /// Fills `node` with the function and its device, after
    /// [`ask_workers`](Self::ask_workers).
    pub(super) fn show_all(&self, scope: &Scope<'_>, node: &mut InspectNode, inside: &Inside<'_>) {
        let workers: Vec<Option<WorkerReading>> = self
            .probes
            .iter()
            .map(|probe| probe.answer(scope.deadline(), || inside.may_stay()))
            .collect();
        node.set("kind", kind_name(self.kind));
        node.set("pci", self.address.to_string());
        show_counters(self.counters().as_deref(), node);
        let positions: Vec<QueuePosition> = workers
            .iter()
            .flatten()
            .flat_map(|reading| reading.queues.iter().copied())
            .collect();
        let all_answered = workers.iter().all(Option::is_some);
        scope.add(node, "workers", |scope, node| {
            for (probe, reading) in self.probes.iter().zip(workers) {
                scope.add(node, probe.name(), |_, node| match reading {
                    Some(reading) => {
                        *node = reading.more;
                        node.set("state", reading.state);
                    }
                    None => node.lacks("the thread did not answer in time"),
                });
            }
        });
        match self.try_state() {
            Some(state) => {
                let registers = Remembered::of(&state);
                drop(state);
                self.show(scope, node, &registers, &positions, all_answered);
            }
            None => {
                node.lacks(
                    "a reset or a pause of the device is under way: \
                     the registers are shown as they were before it",
                );
                match &*self.remembered() {
                    Some(registers) => {
                        self.show(scope, node, registers, &positions, all_answered);
                    }
                    None => node.lacks("the registers were never seen"),
                }
            }
        }
    }

    /// Address and bytes of the BAR as the guest has placed it, if it has.
    pub(super) fn placed_bar(&self) -> (Option<u64>, u64) {
        let base = match self.try_state() {
            Some(state) => state.placer.at(),
            None => self.remembered().as_ref().and_then(|seen| seen.bar),
        };
        (base, BAR_SIZE as u64)
    }

    /// The lock of the registers, unless somebody holds it for long.
    fn try_state(&self) -> Option<MutexGuard<'_, State>> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match self.state.try_lock() {
                Ok(state) => return Some(state),
                Err(TryLockError::Poisoned(state)) => return Some(state.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    fn show(
        &self,
        scope: &Scope<'_>,
        node: &mut InspectNode,
        registers: &Remembered,
        positions: &[QueuePosition],
        all_answered: bool,
    ) {
        let Remembered {
            common,
            active,
            bar,
            msix_enabled,
            msix_masked,
            vectors,
        } = registers;
        let (isr, failed) = self.interrupt.pending();
        let status = common.status | if failed { NEEDS_RESET } else { 0 };
        node.set("status", status_names(status));
        node.set("active", *active);
        node.set("features_offered", InspectValue::hex(common.offered));
        node.set("features_accepted", InspectValue::hex(common.accepted));
        node.set("features", feature_names(self.kind, common.accepted));
        node.set("config_generation", u64::from(common.generation));
        node.set("isr", u64::from(isr));
        set_vector(node, "config_vector", common.config_vector);
        if let Some(base) = bar {
            node.set("bar0", InspectValue::hex(*base));
            node.set("bar0_size", BAR_SIZE as u64);
        }
        scope.add(node, "msix", |scope, node| {
            node.set("enabled", *msix_enabled);
            node.set("masked", *msix_masked);
            for (number, vector) in vectors.iter().enumerate() {
                scope.add(node, &format!("vector{number}"), |_, node| {
                    node.set("masked", vector.masked);
                    node.set("pending", vector.pending);
                    node.set("address", InspectValue::hex(vector.message.address));
                    node.set("data", InspectValue::hex(vector.message.data.into()));
                });
            }
        });
        let event_idx = common.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for (index, setup) in (0u16..).zip(&common.queues) {
            let doorbell = NOTIFY as u64 + u64::from(NOTIFY_STEP) * u64::from(index);
            scope.add(node, &format!("queue{index}"), |_, node| {
                if let Some(base) = bar {
                    node.set("notify_address", InspectValue::hex(base + doorbell));
                }
                let position = positions.iter().find(|position| position.index == index);
                self.show_queue(node, setup, position, event_idx);
                if setup.enabled && position.is_none() && !all_answered {
                    node.lacks("the device's positions: a thread of it did not answer in time");
                }
            });
        }
    }

    fn show_queue(
        &self,
        node: &mut InspectNode,
        setup: &QueueSetupState,
        position: Option<&QueuePosition>,
        event_idx: bool,
    ) {
        let [descriptors, driver, device] = setup.areas;
        node.set("size", u64::from(setup.size));
        node.set("max_size", u64::from(setup.max_size));
        node.set("ready", setup.enabled);
        set_vector(node, "vector", setup.vector);
        if !setup.enabled {
            return;
        }
        node.set("descriptor_area", InspectValue::hex(descriptors));
        node.set("driver_area", InspectValue::hex(driver));
        node.set("device_area", InspectValue::hex(device));
        // Behind the positions, which follow these indices.
        let size = u64::from(setup.size);
        let words = [
            ("avail_idx", driver, 2, true),
            ("used_idx", device, 2, true),
            ("used_event", driver, 4 + 2 * size, event_idx),
            ("avail_event", device, 4 + 8 * size, event_idx),
        ];
        let mut avail_idx = None;
        for (name, area, offset, _) in words.into_iter().filter(|word| word.3) {
            match self.word(area, offset) {
                Some(word) => {
                    node.set(name, u64::from(word));
                    avail_idx = avail_idx.or(Some(word));
                }
                None => node.lacks(format!("{name}: not in the guest's memory")),
            }
        }
        if let Some(position) = position {
            node.set("next_avail", u64::from(position.next_available));
            node.set("next_used", u64::from(position.next_used));
            let taken = position.next_available.wrapping_sub(position.next_used);
            node.set("in_flight", u64::from(taken));
            if let Some(avail_idx) = avail_idx {
                let waiting = avail_idx.wrapping_sub(position.next_available);
                node.set("waiting", u64::from(waiting));
            }
        }
    }

    /// A word of a ring in the guest's memory.
    fn word(&self, area: u64, offset: u64) -> Option<u16> {
        let place = GuestAddress(area.checked_add(offset)?);
        self.memory
            .load(place, Ordering::Acquire)
            .map(u16::from_le)
            .ok()
    }
}

fn set_vector(node: &mut InspectNode, name: &str, vector: u16) {
    match vector {
        NO_VECTOR => node.set(name, "none"),
        vector => node.set(name, u64::from(vector)),
    }
}

#[cfg(test)]
impl VirtioPci {
    pub(super) fn memory_for_tests(&self) -> &crate::memory::GuestRam {
        &self.memory
    }

    /// Does something while the device's threads are waited for.
    pub(super) fn hold_for_tests(&self, work: impl FnOnce()) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.remember(&state);
        work();
        drop(state);
    }
}
