//! The control thread: it owns configuration and machine, carries out what the
//! API asks, and reacts to what the guest does to itself.
//!
//! Everything that changes the machine happens here, one thing after another,
//! so there is nothing to lock. Events come from vCPU and device threads
//! through a channel; each machine has a number, so that the last words of a
//! machine that is gone do not end the next.

mod plug;
mod pulse;
mod resize;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use api_client::config::{ImageType, VmConfig};
use api_client::types::{DeviceNode, VmInfo};
use hypervisor::Hypervisor;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::builder::{BuildError, Origin, build};
use super::consoles::{ConsoleError, Consoles};
use super::deadline::{SHUTDOWN_GRACE, ShutdownWatch};
use super::device_tree::{DeviceError, SaveError, assign_macs};
use super::landlock_rules::landlock_rules;
use super::machine::Machine;
use super::reset_loop::ResetLoop;
use super::state::{TransitionError, VmState};
use crate::api::{
    ApiError, ApiQueue, Descriptors, ErrorKind, RequestHandler, StatusBoard, VmAction, VmReply,
    VmStatus,
};
use crate::config::{ConfigError, VmParams, memory_size, name_devices};
use crate::event::{EventSink, MachineEvent};
use crate::monitor::{EventMonitor, Source};
use crate::sandbox::{LandlockError, confine, end_process};
use crate::stats::StatsHub;
use crate::virtio::block::image::ImageFormat;

/// Why a request or the control thread itself failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no configuration.
    #[error("The VM is not created")]
    NotCreated,
    /// There is one already.
    #[error("The VM is already created")]
    AlreadyCreated,
    /// The state does not allow it.
    #[error(transparent)]
    Transition(#[from] TransitionError),
    /// The machine could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A console has no end on the host.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The file system stays open.
    #[error(transparent)]
    Landlock(#[from] LandlockError),
    /// Not there yet.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// Not there at all.
    #[error("There is no device {0}")]
    NoSuchDevice(String),
    /// A device that stays.
    #[error("The device {0} cannot be removed: only disks, network and socket devices can")]
    FixedDevice(String),
    /// A second socket device.
    #[error("The machine has a socket device already")]
    OneVsock,
    /// No descriptors for the event loop.
    #[error("Cannot set up the control thread")]
    SetUp(#[source] io::Error),
    /// The machine cannot be saved as it is.
    #[error("The VM cannot be saved")]
    Save(#[from] SaveError),
    /// The machine ended by itself, and not as the guest wanted.
    #[error("The virtual machine failed: {0}")]
    Failed(String),
}

impl ControlError {
    fn kind(&self) -> ErrorKind {
        match self {
            ControlError::NotCreated
            | ControlError::NoSuchDevice(_)
            | ControlError::Build(BuildError::Device(DeviceError::NoDisk(_))) => {
                ErrorKind::NotFound
            }
            ControlError::OneVsock
            | ControlError::Save(SaveError::Leaving(_))
            | ControlError::Build(BuildError::Device(
                DeviceError::Exists(_) | DeviceError::ImageInUse(..),
            )) => ErrorKind::Conflict,
            ControlError::Build(
                BuildError::Config(_)
                | BuildError::NoLatency
                | BuildError::Device(
                    DeviceError::NoBalloon | DeviceError::Resize(..) | DeviceError::Image(..),
                ),
            )
            | ControlError::Console(ConsoleError::Config(_))
            | ControlError::Unsupported(_) => ErrorKind::BadRequest,
            _ => ErrorKind::Internal,
        }
    }
}

/// How the control thread's work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The guest switched itself off.
    PowerOff,
    /// A client asked for the end.
    Request,
    /// A signal did.
    Signal,
}

/// What becomes readable when a signal came.
pub struct Signals {
    /// The process is to end.
    pub end: UnixStream,
    /// The terminal has another size. Reading it does not block.
    pub window: UnixStream,
}

const API: u64 = 0;
const EVENTS: u64 = 1;
const END: u64 = 2;
const WINDOW: u64 = 3;

/// Instead of a machine's number: an event that matters whichever machine
/// there is.
const EVERY_MACHINE: u64 = 0;

/// Tells the control thread something; clones go to threads and devices.
#[derive(Clone)]
struct EventQueue {
    sender: Sender<(u64, MachineEvent)>,
    wake: Arc<EventFd>,
}

impl EventQueue {
    fn sink(&self, machine: u64) -> EventSink {
        let queue = self.clone();
        EventSink::new(move |event| {
            // Without a receiver the process is ending anyway.
            if queue.sender.send((machine, event)).is_ok()
                && let Err(error) = queue.wake.write(1)
            {
                log::error!("cannot wake the control thread: {error}");
            }
        })
    }
}

/// Configuration, machine, and what is needed to make one from the other.
pub struct Vmm {
    hypervisor: Arc<dyn Hypervisor>,
    stats: Arc<StatsHub>,
    /// The guest's power-off ends the machine only, not the process.
    no_shutdown: bool,
    queue: EventQueue,
    events: Receiver<(u64, MachineEvent)>,
    config: Option<Box<VmConfig>>,
    /// What clients sent along, for as long as the configuration refers to it.
    descriptors: Vec<Descriptors>,
    /// The host's ends of the configuration's consoles.
    consoles: Option<Consoles>,
    state: VmState,
    machine: Option<Machine>,
    /// What a paused guest has done to itself just before it stood still. It
    /// takes effect when the guest goes on: paused it is to stay.
    deferred: Option<MachineEvent>,
    reset_loop: ResetLoop,
    /// Number of the machine.
    generation: u64,
    /// Number in the next name that is made up for a device.
    next_name: u32,
    ended: Option<Ended>,
    /// Why the control thread has to end, as it found out during a request.
    failed: Option<ControlError>,
    monitor: Option<EventMonitor>,
    watch: Option<ShutdownWatch>,
}

impl Vmm {
    /// A control thread without a machine.
    pub fn new(
        hypervisor: Arc<dyn Hypervisor>,
        stats: Arc<StatsHub>,
        no_shutdown: bool,
    ) -> Result<Self, ControlError> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ControlError::SetUp)?;
        let (sender, events) = channel();
        Ok(Self {
            hypervisor,
            stats,
            no_shutdown,
            queue: EventQueue {
                sender,
                wake: Arc::new(wake),
            },
            events,
            config: None,
            descriptors: Vec::new(),
            consoles: None,
            state: VmState::Created,
            machine: None,
            deferred: None,
            reset_loop: ResetLoop::default(),
            generation: 0,
            next_name: 0,
            ended: None,
            failed: None,
            monitor: None,
            watch: None,
        })
    }

    /// Ends the process if a VM's threads do not end in time, or the VMM itself
    /// does not after a byte came through `signal`, whatever blocks it.
    pub fn limit_shutdown(&mut self, signal: UnixStream) -> Result<(), ControlError> {
        let sink = self.queue.sink(EVERY_MACHINE);
        let watch = ShutdownWatch::start(signal, SHUTDOWN_GRACE, sink, || {
            end_process(&format!(
                "Error: The VM has not shut down within {SHUTDOWN_GRACE:?}: a thread waits for the host\n"
            ))
        });
        self.watch = Some(watch.map_err(ControlError::SetUp)?);
        Ok(())
    }

    /// Writes events to `output` from now on.
    pub fn monitor_events(&mut self, output: File) -> Result<(), ControlError> {
        let sink = self.queue.sink(EVERY_MACHINE);
        let monitor = EventMonitor::start(output, sink).map_err(ControlError::SetUp)?;
        self.monitor = Some(monitor);
        self.emit(Source::Vmm, "starting");
        Ok(())
    }

    fn emit(&self, source: Source, event: &'static str) {
        self.emit_for(source, event, None);
    }

    fn emit_for(&self, source: Source, event: &'static str, id: Option<&str>) {
        if let Some(monitor) = &self.monitor {
            monitor.emit(source, event, id);
        }
    }

    /// Keeps a configuration, to be booted later. Landlock, if asked for, is
    /// for the rest of the process: a later configuration reaches no more.
    pub fn create(&mut self, mut config: Box<VmConfig>) -> Result<(), ControlError> {
        if self.config.is_some() {
            return Err(ControlError::AlreadyCreated);
        }
        let consoles = Consoles::open(&mut config)?;
        if config.landlock_enable {
            confine(&landlock_rules(&config)?)?;
            log::info!("Landlock confines the machine");
        } else if config.landlock_rules.is_some() {
            log::warn!("the rules for Landlock have no effect: it is not switched on");
        }
        self.config = Some(config);
        self.consoles = Some(consoles);
        self.state = VmState::Created;
        Ok(())
    }

    /// Builds the machine and lets it run.
    pub fn boot(&mut self) -> Result<(), ControlError> {
        if self.config.is_none() {
            return Err(ControlError::NotCreated);
        }
        self.emit(Source::Vm, "booting");
        self.start()?;
        self.emit(Source::Vm, "booted");
        Ok(())
    }

    fn start(&mut self) -> Result<(), ControlError> {
        let (Some(config), Some(consoles)) = (&mut self.config, &self.consoles) else {
            return Err(ControlError::NotCreated);
        };
        if !self.state.may_become(VmState::Running) || self.machine.is_some() {
            return Err(TransitionError(self.state).into());
        }
        name_devices(config, &mut self.next_name, |_| false);
        assign_macs(config).map_err(BuildError::Device)?;
        let params = VmParams::try_from(config.as_ref()).map_err(BuildError::Config)?;
        let consoles = consoles.clone();
        self.generation += 1;
        let sink = self.queue.sink(self.generation);
        let (mut machine, stats) =
            build(&self.hypervisor, &params, &consoles, &sink, Origin::Boot)?;
        self.stats.publish(stats);
        self.state.change(VmState::Running)?;
        machine.resume();
        self.machine = Some(machine);
        log::info!("the machine runs");
        Ok(())
    }

    /// Stops vCPUs and devices.
    pub fn pause(&mut self) -> Result<(), ControlError> {
        self.booted()?;
        self.emit(Source::Vm, "pausing");
        self.require(VmState::Paused)?;
        if let Some(machine) = &mut self.machine {
            machine.pause();
        }
        self.state.change(VmState::Paused)?;
        self.emit(Source::Vm, "paused");
        Ok(())
    }

    /// Lets them go on.
    pub fn resume(&mut self) -> Result<(), ControlError> {
        self.booted()?;
        self.emit(Source::Vm, "resuming");
        self.require(VmState::Running)?;
        if let Some(machine) = &mut self.machine {
            machine.resume();
        }
        self.state.change(VmState::Running)?;
        self.emit(Source::Vm, "resumed");
        if let Some(event) = self.deferred.take() {
            self.queue.sink(self.generation).send(event);
        }
        Ok(())
    }

    /// Ends the machine and keeps its configuration.
    pub fn shutdown(&mut self) -> Result<(), ControlError> {
        self.booted()?;
        self.take_down()?;
        self.emit(Source::Vm, "shutdown");
        Ok(())
    }

    /// Ends the machine and boots it again. Nothing is emitted in between: who
    /// hears that the VM is shut down takes it for the end.
    pub fn reboot(&mut self) -> Result<(), ControlError> {
        self.booted()?;
        self.emit(Source::Vm, "rebooting");
        self.take_down()?;
        if let Err(error) = self.start() {
            self.emit(Source::Vm, "shutdown");
            return Err(error);
        }
        self.emit(Source::Vm, "rebooted");
        Ok(())
    }

    /// Forgets the configuration, ending the machine if it runs.
    pub fn delete(&mut self) -> Result<(), ControlError> {
        if self.machine.is_some() {
            self.shutdown()?;
        }
        self.consoles = None;
        self.descriptors.clear();
        self.stats.clear();
        if self.config.take().is_some() {
            self.emit(Source::Vm, "deleted");
        }
        Ok(())
    }

    fn booted(&self) -> Result<&Machine, ControlError> {
        if self.config.is_none() {
            return Err(ControlError::NotCreated);
        }
        self.machine
            .as_ref()
            .ok_or(ControlError::Transition(TransitionError(self.state)))
    }

    fn require(&self, next: VmState) -> Result<(), TransitionError> {
        let mut state = self.state;
        state.change(next)
    }

    fn take_down(&mut self) -> Result<(), ControlError> {
        self.state.change(VmState::Shutdown)?;
        // How long the host takes to have the memory back is its own affair.
        let memory = self.machine.as_ref().map(Machine::memory);
        self.drop_machine();
        drop(memory);
        self.deferred = None;
        self.stats.retire();
        self.state.change(VmState::Created)?;
        log::info!("the machine is shut down");
        Ok(())
    }

    /// Ends the machine's threads within the deadline of a shutdown, or the process.
    /// The statistics are final afterwards.
    fn drop_machine(&mut self) {
        if let Some(watch) = &self.watch {
            watch.arm();
        }
        self.machine = None;
        if let Some(watch) = &self.watch {
            watch.disarm();
        }
    }

    /// Works until the guest, a client or a signal ends it.
    pub fn run(
        &mut self,
        requests: &ApiQueue,
        board: &StatusBoard,
        signals: &Signals,
    ) -> Result<Ended, ControlError> {
        let epoll = Epoll::new().map_err(ControlError::SetUp)?;
        for (fd, token) in [
            (requests.as_raw_fd(), API),
            (self.queue.wake.as_raw_fd(), EVENTS),
            (signals.end.as_raw_fd(), END),
            (signals.window.as_raw_fd(), WINDOW),
        ] {
            epoll
                .ctl(
                    ControlOperation::Add,
                    fd,
                    EpollEvent::new(EventSet::IN, token),
                )
                .map_err(ControlError::SetUp)?;
        }
        board.publish(self.status());
        loop {
            let mut ready = [EpollEvent::default(); 4];
            let count = match epoll.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ControlError::SetUp(error)),
            };
            for event in &ready[..count] {
                match event.data() {
                    API => requests.serve(self, board),
                    EVENTS => {
                        self.handle_vm_events()?;
                        board.publish(self.status());
                    }
                    WINDOW => {
                        // How often it came does not matter.
                        let _ = (&signals.window).read(&mut [0; 64]);
                        if let Some(machine) = &self.machine {
                            machine.devices().resize_console();
                        }
                    }
                    _ => self.ended = Some(Ended::Signal),
                }
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            if let Some(ended) = self.ended {
                self.delete()?;
                self.emit(Source::Vmm, "shutdown");
                return Ok(ended);
            }
        }
    }

    fn handle_vm_events(&mut self) -> Result<(), ControlError> {
        // Nothing to read means that nothing was written: equally quiet.
        let _ = self.queue.wake.read();
        while let Ok((generation, event)) = self.events.try_recv() {
            let ours = generation == self.generation && self.machine.is_some();
            if !ours && generation != EVERY_MACHINE {
                log::debug!("an ended machine says {event:?}");
                continue;
            }
            match event {
                MachineEvent::PowerOff | MachineEvent::Reset if self.state == VmState::Paused => {
                    self.deferred = Some(event);
                }
                MachineEvent::PowerOff if self.no_shutdown => self.shutdown()?,
                MachineEvent::PowerOff => self.ended = Some(Ended::PowerOff),
                MachineEvent::Reset => {
                    log::info!("the guest resets the machine");
                    if self.reset_loop.is_loop(Instant::now()) {
                        log::warn!(
                            "the guest resets the machine many times a second and has not used a \
                             device: it does not find what it needs to boot"
                        );
                        self.emit(Source::Vm, "reset-loop");
                    }
                    self.reboot()?;
                }
                MachineEvent::Ejected(id) => {
                    let machine = self.machine.as_mut();
                    if machine.is_some_and(|machine| machine.devices_mut().ejected(&id)) {
                        self.emit_for(Source::Vm, "device-removed", Some(&id));
                    }
                }
                MachineEvent::DeviceActivated(id) => {
                    self.reset_loop.driver_ran();
                    self.emit_for(Source::VirtioDevice, "activated", Some(&id));
                }
                MachineEvent::DeviceReset(id) => {
                    self.emit_for(Source::VirtioDevice, "reset", Some(&id));
                }
                MachineEvent::Failed(text) => return Err(ControlError::Failed(text)),
            }
        }
        Ok(())
    }
}

impl RequestHandler for Vmm {
    fn handle(&mut self, action: VmAction) -> Result<VmReply, ApiError> {
        // What the guest did before the request was made counts first: a device
        // that it has ejected leaves its id and its slot to the one that is added.
        if self.failed.is_none() {
            self.failed = self.handle_vm_events().err();
        }
        if let Some(error) = &self.failed {
            return Err(ApiError::from_error(error.kind(), error));
        }
        let outcome = match action {
            VmAction::Create(config, descriptors) => self.create(config).map(|()| {
                self.descriptors.push(descriptors);
            }),
            VmAction::Delete => self.delete(),
            VmAction::Boot => self.boot(),
            VmAction::Pause => self.pause(),
            VmAction::Resume => self.resume(),
            VmAction::Shutdown => self.shutdown(),
            VmAction::Reboot => self.reboot(),
            VmAction::Pulse => self.pulse(),
            VmAction::PowerButton => self.booted().map(|machine| {
                machine.devices().press_power_button();
            }),
            VmAction::Nmi => self.booted().and_then(|machine| {
                machine
                    .send_nmi()
                    .map_err(|error| ControlError::Build(BuildError::Hypervisor(error)))
            }),
            VmAction::Resize(wanted) => self.resize(&wanted),
            VmAction::ResizeDisk(wanted) => self.resize_disk(&wanted),
            VmAction::ResizeZone(_) => Err(ControlError::Unsupported(
                "Changing the size of a memory zone",
            )),
            VmAction::AddDevice(device) => match self.add_device(&device) {
                Ok(Some(added)) => return Ok(VmReply::Device(added)),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            },
            VmAction::RemoveDevice(id) => self.remove_device(&id),
            VmAction::VmmShutdown => {
                self.ended = Some(Ended::Request);
                Ok(())
            }
        };
        outcome
            .map(|()| VmReply::Empty)
            .map_err(|error| ApiError::from_error(error.kind(), &error))
    }

    fn status(&self) -> VmStatus {
        let Some(config) = &self.config else {
            return VmStatus::default();
        };
        let machine = self.machine.as_ref();
        VmStatus {
            info: Some(VmInfo {
                config: shown_config(config, machine),
                state: self.state.into(),
                memory_actual_size: memory_size(&config.memory),
                device_tree: machine.map(|machine| device_tree(config, machine)),
            }),
            counters: machine.map(|machine| machine.devices().counters()),
            balloon: machine.and_then(|machine| machine.devices().balloon_reader()),
        }
    }
}

/// The configuration with what was found out. It is only shown: the next boot
/// is to look again, and to treat what it finds as found.
fn shown_config(config: &VmConfig, machine: Option<&Machine>) -> VmConfig {
    let mut config = config.clone();
    for disk in config.disks.iter_mut().flatten() {
        let id = disk.pci_common.id.as_deref().unwrap_or_default();
        match machine.and_then(|machine| machine.devices().image_format(id)) {
            Some(ImageFormat::Raw) => disk.image_type = ImageType::Raw,
            Some(ImageFormat::Qcow2) => disk.image_type = ImageType::Qcow2,
            Some(ImageFormat::Detect) | None => {}
        }
    }
    config
}

fn device_tree(config: &VmConfig, machine: &Machine) -> BTreeMap<String, DeviceNode> {
    let mut tree = machine.devices().tree();
    if config.serial.mode != api_client::config::ConsoleOutputMode::Off {
        let id = "__serial".to_string();
        tree.insert(
            id.clone(),
            DeviceNode {
                id,
                ..Default::default()
            },
        );
    }
    tree
}

impl From<ConfigError> for ControlError {
    fn from(error: ConfigError) -> Self {
        ControlError::Build(BuildError::Config(error))
    }
}

#[cfg(test)]
mod tests;
