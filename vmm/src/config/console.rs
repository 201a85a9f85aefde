//! The virtio console, checked.

use std::path::PathBuf;

use api_client::config::{ConsoleConfig, ConsoleOutputMode, SerialConfig};

use super::{ConfigError, PciParams};

/// Where a console leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleTarget {
    /// Nowhere.
    Null,
    /// The terminal that the program was started on.
    Terminal,
    /// A new pseudo terminal.
    PseudoTerminal,
    /// A file, made anew.
    File(PathBuf),
    /// A socket to connect to.
    Socket(PathBuf),
}

/// A console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleParams {
    /// Name and place.
    pub pci: PciParams,
    /// Where it leads.
    pub target: ConsoleTarget,
}

impl ConsoleParams {
    /// Checks a console beside a serial port; none if it is off.
    pub fn new(config: &ConsoleConfig, serial: &SerialConfig) -> Result<Option<Self>, ConfigError> {
        let target = match config.mode {
            ConsoleOutputMode::Off => return Ok(None),
            ConsoleOutputMode::Null => ConsoleTarget::Null,
            ConsoleOutputMode::Tty if serial.mode == ConsoleOutputMode::Tty => {
                return Err(ConfigError::TwoTerminals);
            }
            ConsoleOutputMode::Tty => ConsoleTarget::Terminal,
            ConsoleOutputMode::Pty => ConsoleTarget::PseudoTerminal,
            ConsoleOutputMode::File => ConsoleTarget::File(
                config
                    .file
                    .clone()
                    .ok_or(ConfigError::NoFile("virtio console"))?,
            ),
            ConsoleOutputMode::Socket => {
                ConsoleTarget::Socket(config.socket.clone().ok_or(ConfigError::NoConsoleSocket)?)
            }
        };
        Ok(Some(Self {
            pci: PciParams::try_from(&config.pci_common)?,
            target,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        mode: ConsoleOutputMode,
        serial: ConsoleOutputMode,
    ) -> Result<Option<ConsoleTarget>, ConfigError> {
        let config = ConsoleConfig {
            mode,
            ..ConsoleConfig::default()
        };
        let serial = SerialConfig {
            mode: serial,
            ..SerialConfig::default()
        };
        Ok(ConsoleParams::new(&config, &serial)?.map(|params| params.target))
    }

    #[test]
    fn the_terminal_is_for_one_only() {
        use ConsoleOutputMode::{Off, Tty};
        assert_eq!(check(Tty, Off), Ok(Some(ConsoleTarget::Terminal)));
        assert_eq!(check(Off, Tty), Ok(None));
        assert_eq!(check(Tty, Tty), Err(ConfigError::TwoTerminals));
    }

    #[test]
    fn a_file_or_socket_needs_a_path() {
        use ConsoleOutputMode::{File, Off, Socket};
        assert_eq!(check(File, Off), Err(ConfigError::NoFile("virtio console")));
        assert_eq!(check(Socket, Off), Err(ConfigError::NoConsoleSocket));
    }
}
