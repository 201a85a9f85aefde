//! A virtio device as a PCI function.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use api_client::inspect::InspectNode;
use hypervisor::Vm;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::common::{CommonConfig, CommonState, QueueSetupError};
use super::inspect::Remembered;
use super::interrupt::PciInterrupt;
use super::registers::{config_space, device_config};
use super::{
    BAR_SIZE, COMMON, DEVICE, DEVICE_END, ISR, MAX_VECTORS, NOTIFY, NOTIFY_STEP, PENDING,
    PENDING_END, TABLE, TABLE_END, WINDOW,
};
use crate::bus::BusDevice;
use crate::event::{EventSink, MachineEvent};
use crate::inspect::{Inside, Scope};
use crate::interrupt::InterruptError;
use crate::log_limit::LogLimit;
use crate::memory::{GuestRam, MemoryError, PCI_DEVICE_SLOTS, ReadOnlyWindow};
use crate::pci::{
    BarPlacer, CONFIG_SIZE, ConfigSpace, MsixCapability, MsixState, MsixTable, MsixVectors,
    PciAddress, PciContext, PciFunction, PciUnit,
};
use crate::state::{StateError, device_state, from_device_state};
use crate::virtio::worker::{Worker, WorkerProbe};
use crate::virtio::{
    ActivateError, Activation, COMMON_FEATURES, DeviceCounters, GuestFaults, QueuePosition,
    Transition, VirtQueue, VirtioDevice, VirtioInterrupt,
};

/// Before a device's id: its PCI function.
pub const FUNCTION_PREFIX: &str = "_virtio-pci-";

/// Events of one device in ten seconds. A guest can reset a device a hundred
/// thousand times a second, and each event is a line in somebody's file.
const MAX_EVENTS: u32 = 50;

/// Why a device cannot be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Too many queues for the registers.
    #[error("{0} queues are too many for a PCI device")]
    TooManyQueues(usize),
    /// No interrupts.
    #[error("The device's interrupts cannot be set up")]
    Interrupt(#[from] InterruptError),
    /// No descriptors.
    #[error("Cannot create an event for a queue")]
    Event(#[source] std::io::Error),
}

/// Why a device does not start with what its driver set up.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Queue(#[from] QueueSetupError),
    #[error(transparent)]
    Device(#[from] ActivateError),
}

pub(super) struct State {
    pub(super) config: ConfigSpace,
    pub(super) msix_capability: MsixCapability,
    pub(super) table: MsixTable,
    pub(super) placer: BarPlacer,
    pub(super) common: CommonConfig,
    /// A driver has taken the device into use.
    pub(super) active: bool,
    pub(super) device: Box<dyn VirtioDevice>,
}

/// A function and its device as they are saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    /// The configuration registers.
    config: Vec<u8>,
    table: MsixState,
    common: CommonState,
    /// A driver has taken the device into use.
    active: bool,
    isr: u8,
    /// The driver was asked for a reset.
    failed: bool,
    pub(super) queues: Vec<QueuePosition>,
    /// What only the device knows.
    device: Value,
}

/// The function. Lock order: `state`, then whatever is below: bus, interrupt
/// routes, what is mirror. A device's thread takes the last one only, so
/// waiting for it with `state` held is safe.
pub struct VirtioPci {
    /// Itself, for the bus.
    me: Weak<Self>,
    pub(super) address: PciAddress,
    vm: Arc<dyn Vm>,
    pub(super) memory: Arc<GuestRam>,
    faults: Arc<GuestFaults>,
    pub(super) interrupt: Arc<PciInterrupt>,
    /// Shared with the device's threads, so that activations take no
    /// descriptors.
    pub(super) kicks: Vec<Arc<EventFd>>,
    /// The ways to ask the device's threads.
    pub(super) probes: Vec<WorkerProbe>,
    /// By the standard's number.
    pub(super) kind: u32,
    counters: Option<Arc<dyn DeviceCounters>>,
    name: String,
    events: EventSink,
    event_limit: LogLimit,
    pub(super) state: Mutex<State>,
    /// What an inspection sees while somebody waits for the device's threads with
    /// the lock of `state`.
    pub(super) remembered: Mutex<Option<Remembered>>,
}

/// What the device counts, and what its driver does wrong.
struct FunctionCounters {
    device: Option<Arc<dyn DeviceCounters>>,
    faults: Arc<GuestFaults>,
}

impl DeviceCounters for FunctionCounters {
    fn read(&self) -> BTreeMap<String, u64> {
        let device = self.device.as_ref();
        let mut counters = device.map_or_else(BTreeMap::new, |device| device.read());
        counters.insert("driver_faults".to_owned(), self.faults.count());
        counters
    }

    fn only_grows(&self, name: &str) -> bool {
        self.device
            .as_ref()
            .is_none_or(|device| device.only_grows(name))
    }
}

impl VirtioPci {
    /// Makes a function of `device`. The guest sees it once it is inserted
    /// into the segment.
    pub fn new(
        name: &str,
        address: PciAddress,
        device: Box<dyn VirtioDevice>,
        platform: &PciContext,
    ) -> Result<Arc<Self>, TransportError> {
        let queues = device.queue_sizes().len();
        if queues + 1 > MAX_VECTORS {
            return Err(TransportError::TooManyQueues(queues));
        }
        let vectors = MsixVectors::new(&platform.router, queues as u16 + 1)?;
        let (config, msix_capability) = config_space(address, device.as_ref(), vectors.count());
        let common = CommonConfig::new(device.features() | COMMON_FEATURES, device.queue_sizes());
        let kicks = (0..queues)
            .map(|_| {
                let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
                kick.map(Arc::new).map_err(TransportError::Event)
            })
            .collect::<Result<_, _>>()?;
        let placer = BarPlacer::new(name, &platform.mmio, BAR_SIZE as u64);
        let interrupt = Arc::new(PciInterrupt::new(Arc::clone(&vectors), queues));
        let faults = Arc::clone(device.faults());
        let function = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            address,
            vm: Arc::clone(&platform.vm),
            memory: Arc::clone(&platform.memory),
            faults,
            interrupt,
            kicks,
            probes: device.workers().iter().map(Worker::probe).collect(),
            kind: device.kind(),
            counters: device.counters(),
            name: name.to_owned(),
            events: platform.events.clone(),
            event_limit: LogLimit::of(MAX_EVENTS, name),
            state: Mutex::new(State {
                config,
                msix_capability,
                table: MsixTable::new(vectors),
                placer,
                common,
                active: false,
                device,
            }),
            remembered: Mutex::new(None),
        });
        function.publish(&function.state());
        Ok(function)
    }

    /// The function and its device as they are, while the device is paused.
    ///
    /// # Errors
    /// Interrupts that are on their way cannot be waited for.
    pub(super) fn save_state(&self) -> Result<VirtioPciState, InterruptError> {
        let state = self.state();
        let State {
            config,
            // Follows from the registers.
            msix_capability: _,
            table,
            placer: _,
            common,
            active,
            device,
        } = &*state;
        let (isr, failed) = self.interrupt.pending();
        Ok(VirtioPciState {
            config: config.bytes().to_vec(),
            table: table.save()?,
            common: common.save(),
            active: *active,
            isr,
            failed,
            queues: device
                .workers()
                .iter()
                .flat_map(Worker::positions)
                .collect(),
            device: device.save(),
        })
    }

    /// Makes the function and its device what was saved. They are as after a
    /// reset, and the device is paused.
    ///
    /// # Errors
    /// It is the state of another device, or the host does not do what it takes.
    pub(super) fn restore_state(&self, saved: &VirtioPciState) -> Result<(), StateError> {
        let unfit = |why: &dyn std::fmt::Display| StateError::unfit(&self.name, why);
        let VirtioPciState {
            config,
            table,
            common,
            active,
            isr,
            failed,
            queues,
            device,
        } = saved;
        let mut guard = self.state();
        let state = &mut *guard;
        state
            .config
            .restore(config)
            .map_err(|error| unfit(&error))?;
        let vectors = self.kicks.len() as u16 + 1;
        state
            .common
            .restore(common, vectors)
            .map_err(|error| unfit(&error))?;
        self.follow_vectors(state);
        self.interrupt.set_pending(*isr, *failed);
        // A device that failed has no queues, until it is reset.
        if state.common.is_active() && !failed {
            self.try_activate(state, Some(queues))
                .map_err(|error| unfit(&error))?;
        }
        state.active = *active;
        state.device.restore(device)?;
        let masks = state.msix_capability.state(&state.config);
        state
            .table
            .restore(table, masks)
            .map_err(|error| unfit(&error))?;
        let wanted = state.config.bar(0);
        self.place(state, wanted);
        self.publish(state);
        Ok(())
    }

    fn follow_vectors(&self, state: &State) {
        self.interrupt.set_vectors(
            state.common.config_vector,
            state.common.queues.iter().map(|queue| queue.vector),
        );
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores what the registers look like now where the guest reads them.
    fn publish(&self, state: &State) {
        self.interrupt
            .publish(state.common.bytes(), &device_config(state.device.as_ref()));
    }

    /// Puts registers and doorbells where the guest wants them.
    fn place(&self, state: &mut State, wanted: Option<u64>) {
        let before = state.placer.at();
        let me: Weak<dyn BusDevice> = Weak::<Self>::clone(&self.me);
        if !state.placer.place(wanted, &me) {
            return;
        }
        if let Some(base) = before {
            self.interrupt.set_window(None);
            for (kick, doorbell) in self.doorbells(base) {
                if let Err(error) = self.vm.unregister_ioeventfd(kick, doorbell) {
                    self.faults.report_host(&error);
                }
            }
        }
        let Some(base) = state.placer.at() else {
            return;
        };
        for (kick, doorbell) in self.doorbells(base) {
            if let Err(error) = self.vm.register_ioeventfd(kick, doorbell) {
                // Kicks then come through `write`, slower.
                self.faults.report_host(&error);
            }
        }
        match self.window(base) {
            Ok(window) => {
                self.interrupt.set_window(Some(window));
                self.publish(state);
                self.interrupt.publish_table(state.table.bytes());
            }
            // Reads then come through `read`, slower.
            Err(error) => self.faults.report_host(&error),
        }
    }

    fn window(&self, base: u64) -> Result<ReadOnlyWindow, MemoryError> {
        let slot = PCI_DEVICE_SLOTS + u32::from(self.address.device);
        ReadOnlyWindow::map(Arc::clone(&self.vm), slot, base, &[0; WINDOW], 1)
    }

    fn doorbells(&self, base: u64) -> impl Iterator<Item = (&EventFd, u64)> {
        let first = base + NOTIFY as u64;
        self.kicks
            .iter()
            .map(Arc::as_ref)
            .zip((first..).step_by(NOTIFY_STEP as usize))
    }

    fn write_common(&self, state: &mut State, offset: usize, data: &[u8]) {
        let vectors = self.kicks.len() as u16 + 1;
        match state.common.write(offset, data, vectors) {
            Transition::None => {}
            Transition::Reset => {
                self.remember(state);
                state.device.reset();
                state.common.reset();
                self.interrupt.reset();
                // Drivers reset the device before they use it, too.
                if std::mem::take(&mut state.active) {
                    self.emit(MachineEvent::DeviceReset);
                }
            }
            Transition::Activate => self.activate(state),
        }
        self.follow_vectors(state);
        self.publish(state);
    }

    fn activate(&self, state: &mut State) {
        if let Err(error) = self.try_activate(state, None) {
            self.faults.report(&format!("cannot activate: {error}"));
            self.interrupt.needs_reset();
            return;
        }
        state.active = true;
        self.emit(MachineEvent::DeviceActivated);
    }

    /// Reports an event of the device, unless there were many just now.
    fn emit(&self, event: impl FnOnce(String) -> MachineEvent) {
        match self.event_limit.allows() {
            Some(0) => {}
            Some(left_out) => self.faults.report(&format_args!(
                "{left_out} events of the device were left out: the driver restarts it in a loop"
            )),
            None => return,
        }
        self.events.send(event(self.name.clone()));
    }

    /// Activates the device with the queues that the driver set up, from their
    /// beginning or from where it was in them.
    fn try_activate(
        &self,
        state: &mut State,
        positions: Option<&[QueuePosition]>,
    ) -> Result<(), StartError> {
        let memory = &self.memory;
        let interrupt = Arc::clone(&self.interrupt) as Arc<dyn VirtioInterrupt>;
        let queues = state
            .common
            .build_queues(memory)?
            .into_iter()
            .map(|(index, mut queue)| {
                if let Some(positions) = positions {
                    let position = positions.iter().find(|position| position.index == index);
                    // A queue that nobody took over stays at its beginning.
                    let (next_available, next_used) = position.map_or((0, 0), |position| {
                        (position.next_available, position.next_used)
                    });
                    queue.set_next_avail(next_available);
                    queue.set_next_used(next_used);
                }
                let kick = Arc::clone(&self.kicks[usize::from(index)]);
                let memory = Arc::clone(memory);
                VirtQueue::new(index, queue, memory, kick, Arc::clone(&interrupt))
            })
            .collect();
        let activation = Activation {
            memory: Arc::clone(memory),
            features: state.common.features(),
            queues,
            interrupt,
        };
        Ok(state.device.activate(activation)?)
    }
}

impl PciFunction for VirtioPci {
    fn id(&self) -> &str {
        &self.name
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut state = self.state();
        state.config.write(offset, data);
        let (enabled, masked) = state.msix_capability.state(&state.config);
        if let Err(error) = state.table.set_state(enabled, masked) {
            self.faults.report(&error);
        }
        let wanted = state.config.bar(0);
        self.place(&mut state, wanted);
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        *self.state().config.bytes()
    }

    fn detach(&self) {
        let mut state = self.state();
        self.place(&mut state, None);
        state.device.reset();
    }
}

impl PciUnit for VirtioPci {
    fn function_id(&self) -> Option<String> {
        Some(format!("{FUNCTION_PREFIX}{}", self.name))
    }

    fn bar(&self) -> (u64, u64) {
        let placed = self.state().placer.at();
        let first = u64::from(BarPlacer::first_address(self.address));
        (placed.unwrap_or(first), BAR_SIZE as u64)
    }

    /// Those of the device, and of its driver's faults.
    fn counters(&self) -> Option<Arc<dyn DeviceCounters>> {
        Some(Arc::new(FunctionCounters {
            device: self.counters.clone(),
            faults: Arc::clone(&self.faults),
        }))
    }

    fn family(&self) -> &'static str {
        "virtio"
    }

    fn ask(&self) {
        self.ask_workers();
    }

    fn inspect(&self, scope: &Scope<'_>, node: &mut InspectNode, inside: &Inside<'_>) {
        self.show_all(scope, node, inside);
    }

    fn inspect_bar(&self) -> (Option<u64>, u64) {
        self.placed_bar()
    }

    fn config_changed(&self) {
        let mut state = self.state();
        state.common.next_generation();
        self.publish(&state);
        drop(state);
        self.interrupt.config_changed();
    }

    fn pause(&self) {
        let state = self.state();
        self.remember(&state);
        Worker::pause_all(state.device.workers());
    }

    fn resume(&self) {
        for worker in self.state().device.workers() {
            worker.resume();
        }
    }

    fn save(&self) -> Result<Value, InterruptError> {
        self.save_state().map(|state| device_state(&state))
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        self.restore_state(&from_device_state(&self.name, state)?)
    }
}

impl BusDevice for VirtioPci {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        let copy = |bytes: &[u8], from: usize, data: &mut [u8]| {
            crate::virtio::copy_config(bytes, offset - from, data);
        };
        match offset {
            COMMON..DEVICE => copy(&self.interrupt.common(), COMMON, data),
            DEVICE..DEVICE_END => {
                copy(&device_config(self.state().device.as_ref()), DEVICE, data);
            }
            TABLE..TABLE_END => copy(self.state().table.bytes(), TABLE, data),
            ISR => data[0] = self.interrupt.take_isr(),
            PENDING..PENDING_END => copy(&self.state().table.pending(), PENDING, data),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        let mut state = self.state();
        match offset {
            COMMON..DEVICE => self.write_common(&mut state, offset - COMMON, data),
            DEVICE..DEVICE_END => {
                let at = offset - DEVICE;
                if at + data.len() <= state.device.config_length() {
                    state.device.write_config(at, data);
                    self.publish(&state);
                }
            }
            TABLE..TABLE_END => {
                if let Err(error) = state.table.write(offset - TABLE, data) {
                    self.faults.report(&error);
                }
                self.interrupt.publish_table(state.table.bytes());
            }
            NOTIFY..BAR_SIZE => {
                // Only where the hypervisor would not take the doorbell.
                if let Some(kick) = self.kicks.get((offset - NOTIFY) / NOTIFY_STEP as usize) {
                    let _ = kick.write(1);
                }
            }
            _ => {}
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        // The machine is being taken down: the guest does not run any more, so
        // only the device's own thread could still touch its memory.
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.device.reset();
    }
}
