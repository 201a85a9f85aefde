//! What the API asks of the control thread, and how the answer travels back.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use api_client::config::{
    DiskConfig, NetConfig, RestoreConfig, VmConfig, VmSnapshotConfig, VsockConfig,
};
use api_client::inspect::InspectNode;
use api_client::types::{
    DeviceNode, PciDeviceInfo, VmCounters, VmInfo, VmResize, VmResizeDisk, VmResizeZone,
};

use super::descriptors::Descriptors;
use crate::inspect::Scope;

/// Everything that only the control thread may do. Reading (`vmm.ping`,
/// `vm.info`, `vm.counters`, `exit-stats`) is not among it: the API thread
/// answers those by itself, so that nothing ever waits behind a slow boot.
#[derive(Clone, Debug, PartialEq)]
pub enum VmAction {
    /// Keep a configuration, and the descriptors that it refers to.
    Create(Box<VmConfig>, Descriptors),
    /// Forget it, ending the machine if it runs.
    Delete,
    /// Build the machine and let it run.
    Boot,
    /// Stop the vCPUs.
    Pause,
    /// Let them go on.
    Resume,
    /// End the machine, keep its configuration.
    Shutdown,
    /// End the machine and boot it again.
    Reboot,
    /// Make the machine anew of its own state.
    Pulse,
    /// Save the machine.
    Snapshot(VmSnapshotConfig),
    /// Make a machine of a saved one, with these descriptors.
    Restore(Box<RestoreConfig>, Descriptors),
    /// Press the ACPI power button.
    PowerButton,
    /// Interrupt the vCPUs with an NMI.
    Nmi,
    /// Change the size.
    Resize(VmResize),
    /// Change the size of a disk.
    ResizeDisk(VmResizeDisk),
    /// Change the size of a memory zone.
    ResizeZone(VmResizeZone),
    /// Add a device.
    AddDevice(NewDevice),
    /// Take the device of this name away.
    RemoveDevice(String),
    /// End the machine and the process.
    VmmShutdown,
}

impl VmAction {
    /// The request that asks for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            VmAction::Create(..) => "vm.create",
            VmAction::Delete => "vm.delete",
            VmAction::Boot => "vm.boot",
            VmAction::Pause => "vm.pause",
            VmAction::Resume => "vm.resume",
            VmAction::Shutdown => "vm.shutdown",
            VmAction::Reboot => "vm.reboot",
            VmAction::Snapshot(_) => "vm.snapshot",
            VmAction::Restore(..) => "vm.restore",
            VmAction::Pulse => "vm.pulse",
            VmAction::PowerButton => "vm.power-button",
            VmAction::Nmi => "vm.nmi",
            VmAction::Resize(_) => "vm.resize",
            VmAction::ResizeDisk(_) => "vm.resize-disk",
            VmAction::ResizeZone(_) => "vm.resize-zone",
            VmAction::AddDevice(NewDevice::Disk(_)) => "vm.add-disk",
            VmAction::AddDevice(NewDevice::Net(..)) => "vm.add-net",
            VmAction::AddDevice(NewDevice::Vsock(_)) => "vm.add-vsock",
            VmAction::RemoveDevice(_) => "vm.remove-device",
            VmAction::VmmShutdown => "vmm.shutdown",
        }
    }
}

/// A device that can be added at any time.
#[derive(Clone, Debug, PartialEq)]
pub enum NewDevice {
    /// A disk.
    Disk(Box<DiskConfig>),
    /// A network device, and the descriptors that it refers to.
    Net(Box<NetConfig>, Descriptors),
    /// A socket device.
    Vsock(Box<VsockConfig>),
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq)]
pub enum VmReply {
    /// Done; there is nothing to say.
    Empty,
    /// A device was added to the running machine.
    Device(PciDeviceInfo),
}

/// What went wrong, as far as a client's reaction depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request or the configuration is at fault: 400.
    BadRequest,
    /// What the request names is not there, a virtual machine included: 404.
    NotFound,
    /// The request collides with something that is there: 409.
    Conflict,
    /// It may work later: 429.
    TryLater,
    /// Anything else, a wrong state included, as Cloud Hypervisor has it: 500.
    Internal,
}

/// A failure with its causes, outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// Decides the status code.
    pub kind: ErrorKind,
    /// The messages, outermost first; none repeats the next.
    pub chain: Vec<String>,
}

impl ApiError {
    /// A failure with a single message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        ApiError {
            kind,
            chain: vec![message.into()],
        }
    }

    /// A failure with the messages of an error and all its sources.
    pub fn from_error(kind: ErrorKind, error: &(dyn Error + 'static)) -> Self {
        ApiError {
            kind,
            chain: chain_of(error),
        }
    }

    /// The same failure seen from further out.
    pub fn context(mut self, message: impl Into<String>) -> Self {
        self.chain.insert(0, message.into());
        self
    }
}

/// The messages of an error and of all its sources, outermost first.
pub(crate) fn chain_of(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut chain = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        chain.push(error.to_string());
        source = error.source();
    }
    chain
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl Error for ApiError {}

/// What the control thread publishes for `vm.info` and `vm.counters`.
#[derive(Clone, Default)]
pub struct VmStatus {
    /// `None` as long as there is no configuration.
    pub info: Option<VmInfo>,
    /// Reads the devices' counters; `None` unless a machine is booted. Called
    /// on the API thread: it must neither block nor take a lock that a device
    /// holds while it works.
    pub counters: Option<Arc<dyn Fn() -> VmCounters + Send + Sync>>,
    /// Reads how many bytes the balloon has taken from the guest; `None`
    /// without one. Called like `counters`.
    pub balloon: Option<Arc<dyn Fn() -> u64 + Send + Sync>>,
    /// Reads the live state of a booted machine; `None` unless there is one.
    pub machine: Option<Arc<dyn InspectMachine>>,
}

/// A booted machine whose live state can be read at any time. Called on the
/// inspector's thread alone.
pub trait InspectMachine: Send + Sync {
    /// Adds to `root` what the machine consists of, as far as it is asked for.
    fn inspect(&self, scope: &Scope<'_>, root: &mut InspectNode);
}

impl fmt::Debug for VmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmStatus")
            .field("info", &self.info)
            .field("counters", &self.counters.is_some())
            .finish()
    }
}

/// The devices of a booted machine by identifier, as `vm.info` shows them.
pub type DeviceTree = BTreeMap<String, DeviceNode>;

/// The control thread's side of the API.
pub trait RequestHandler {
    /// Carries an action out. Runs on the control thread, which may take as
    /// long as it needs.
    fn handle(&mut self, action: VmAction) -> Result<VmReply, ApiError>;

    /// The machine as it is now; asked after every action, before its answer
    /// is sent, so a client never sees an older state than it was told of.
    fn status(&self) -> VmStatus;
}
