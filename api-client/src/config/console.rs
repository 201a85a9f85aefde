//! Serial port, virtio console and debug port.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::PciCommon;

/// Port of the debug console, unless configured.
pub const DEBUG_CONSOLE_IO_BASE: u16 = 0xe9;

/// Where a console's bytes go.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleOutputMode {
    /// There is no such device.
    Off,
    /// A pseudo terminal that the VMM opens.
    Pty,
    /// The terminal that the VMM was started on.
    Tty,
    /// A file; output only.
    File,
    /// A Unix socket that the VMM listens on.
    Socket,
    /// The device is there, its output is dropped.
    Null,
}

/// The 16550 serial port.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialConfig {
    /// Where its bytes go.
    pub mode: ConsoleOutputMode,
    /// The file, in mode `File`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The socket, in mode `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

impl Default for SerialConfig {
    fn default() -> Self {
        SerialConfig {
            mode: ConsoleOutputMode::Null,
            file: None,
            socket: None,
        }
    }
}

/// The virtio console.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// Identity and place on the PCI bus.
    #[serde(flatten)]
    pub pci_common: PciCommon,
    /// Where its bytes go.
    pub mode: ConsoleOutputMode,
    /// The file, in mode `File`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The socket, in mode `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        ConsoleConfig {
            pci_common: PciCommon::default(),
            mode: ConsoleOutputMode::Tty,
            file: None,
            socket: None,
        }
    }
}

/// The port that firmware and early kernels write their messages to.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugConsoleConfig {
    /// Where its bytes go.
    pub mode: ConsoleOutputMode,
    /// The file, in mode `File`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Its I/O port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iobase: Option<u16>,
}

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        DebugConsoleConfig {
            mode: ConsoleOutputMode::Off,
            file: None,
            iobase: Some(DEBUG_CONSOLE_IO_BASE),
        }
    }
}
