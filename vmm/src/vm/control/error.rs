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

impl From<ConfigError> for ControlError {
    fn from(error: ConfigError) -> Self {
        ControlError::Build(BuildError::Config(error))
    }
}
