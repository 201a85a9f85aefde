//! Why a request or the control thread itself failed.

use std::io;

use super::super::builder::BuildError;
use super::super::consoles::ConsoleError;
use super::super::device_tree::{DeviceError, SaveError};
use super::super::snapshot::SnapshotError;
use super::super::state::TransitionError;
use crate::api::ErrorKind;
use crate::config::ConfigError;
use crate::sandbox::LandlockError;

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
    /// The machine is neither saved nor restored.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The machine ended by itself, and not as the guest wanted.
    #[error("The virtual machine failed: {0}")]
    Failed(String),
}

impl ControlError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            ControlError::Snapshot(error) => error.kind(),
            ControlError::NotCreated | ControlError::NoSuchDevice(_) => ErrorKind::NotFound,
            ControlError::OneVsock => ErrorKind::Conflict,
            ControlError::Unsupported(_) => ErrorKind::BadRequest,
            ControlError::Build(error) => kind_of_build(error),
            ControlError::Console(error) => match error {
                ConsoleError::Config(_) => ErrorKind::BadRequest,
                ConsoleError::Open(..) => ErrorKind::Internal,
            },
            ControlError::Save(error) => match error {
                SaveError::Leaving(_) => ErrorKind::Conflict,
                SaveError::Interrupts(..) | SaveError::Hypervisor(_) => ErrorKind::Internal,
            },
            // As in Cloud Hypervisor, a wrong state is no fault of the request.
            ControlError::AlreadyCreated
            | ControlError::Transition(_)
            | ControlError::FixedDevice(_)
            | ControlError::Landlock(_)
            | ControlError::SetUp(_)
            | ControlError::Failed(_) => ErrorKind::Internal,
        }
    }
}

fn kind_of_build(error: &BuildError) -> ErrorKind {
    match error {
        BuildError::Config(_) | BuildError::NoLatency => ErrorKind::BadRequest,
        BuildError::Device(error) => kind_of_device(error),
        BuildError::Hypervisor(_)
        | BuildError::Memory(_)
        | BuildError::Boot(_)
        | BuildError::Interrupt(_)
        | BuildError::Bus(_)
        | BuildError::SerialInput(_)
        | BuildError::Vcpu(_)
        | BuildError::State(_) => ErrorKind::Internal,
    }
}

fn kind_of_device(error: &DeviceError) -> ErrorKind {
    match error {
        DeviceError::NoDisk(_) => ErrorKind::NotFound,
        DeviceError::Exists(_) | DeviceError::ImageInUse(..) => ErrorKind::Conflict,
        DeviceError::NoBalloon | DeviceError::Resize(..) | DeviceError::Image(..) => {
            ErrorKind::BadRequest
        }
        DeviceError::Slot(..)
        | DeviceError::Transport(..)
        | DeviceError::Segment(_)
        | DeviceError::Bus(_)
        | DeviceError::Disk(..)
        | DeviceError::Net(..)
        | DeviceError::Mac(_)
        | DeviceError::Console(_)
        | DeviceError::Vsock(..)
        | DeviceError::Balloon(_)
        | DeviceError::Flag(..)
        | DeviceError::Rng(..) => ErrorKind::Internal,
    }
}

impl From<ConfigError> for ControlError {
    fn from(error: ConfigError) -> Self {
        ControlError::Build(BuildError::Config(error))
    }
}
