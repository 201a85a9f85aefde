//! The consoles, checked: serial port, virtio console, debug port.

use std::path::{Path, PathBuf};

use api_client::config::{
    ConsoleConfig, ConsoleOutputMode, DEBUG_CONSOLE_IO_BASE, DebugConsoleConfig, SerialConfig,
    VmConfig,
};

use super::{ConfigError, PciParams};
use crate::chardev::ConsoleTarget;

/// The consoles of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleTargets {
    /// Where the serial port leads; there is none if absent.
    pub serial: Option<ConsoleTarget>,
    /// Where the virtio console leads; there is none if absent.
    pub console: Option<ConsoleTarget>,
    /// Where the debug port leads; there is none if absent.
    pub debug: Option<ConsoleTarget>,
}

impl TryFrom<&VmConfig> for ConsoleTargets {
    type Error = ConfigError;

    fn try_from(config: &VmConfig) -> Result<Self, ConfigError> {
        let VmConfig {
            serial: SerialConfig { mode, file, socket },
            console,
            debug_console: debug,
            ..
        } = config;
        // Nobody can answer it, and Cloud Hypervisor has no such mode either.
        if debug.mode == ConsoleOutputMode::Socket {
            return Err(ConfigError::Unsupported(
                "A debug console that goes to a socket".into(),
            ));
        }
        let (serial_file, serial_socket) = (file.as_deref(), socket.as_deref());
        let (console_file, console_socket) = (console.file.as_deref(), console.socket.as_deref());
        let serial = target("serial port", *mode, serial_file, serial_socket)?;
        let mut console = target("virtio console", console.mode, console_file, console_socket)?;
        // Whoever wants the serial port on the terminal asked for it; the
        // console is there unless switched off.
        if serial == Some(ConsoleTarget::Terminal) && console == serial {
            console = Some(ConsoleTarget::TerminalOutput);
        }
        Ok(Self {
            serial,
            console,
            debug: target("debug console", debug.mode, debug.file.as_deref(), None)?,
        })
    }
}

fn target(
    name: &'static str,
    mode: ConsoleOutputMode,
    file: Option<&Path>,
    socket: Option<&Path>,
) -> Result<Option<ConsoleTarget>, ConfigError> {
    let path = |path: Option<&Path>, error| path.map(PathBuf::from).ok_or(error);
    Ok(Some(match mode {
        ConsoleOutputMode::Off => return Ok(None),
        ConsoleOutputMode::Null => ConsoleTarget::Null,
        ConsoleOutputMode::Tty => ConsoleTarget::Terminal,
        ConsoleOutputMode::Pty => ConsoleTarget::PseudoTerminal,
        ConsoleOutputMode::File => {
            ConsoleTarget::File(path(file, ConfigError::NoConsoleFile(name))?)
        }
        ConsoleOutputMode::Socket => {
            ConsoleTarget::Socket(path(socket, ConfigError::NoConsoleSocket(name))?)
        }
    }))
}

/// The port of the debug console; none if that is off.
pub(super) fn debug_port(config: &DebugConsoleConfig) -> Option<u16> {
    (config.mode != ConsoleOutputMode::Off).then(|| config.iobase.unwrap_or(DEBUG_CONSOLE_IO_BASE))
}

/// Name and place of the virtio console; none if it is off.
pub(super) fn place(config: &ConsoleConfig) -> Result<Option<PciParams>, ConfigError> {
    (config.mode != ConsoleOutputMode::Off)
        .then(|| PciParams::try_from(&config.pci_common))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut VmConfig)) -> Result<ConsoleTargets, ConfigError> {
        let mut config = VmConfig::default();
        change(&mut config);
        ConsoleTargets::try_from(&config)
    }

    #[test]
    fn defaults_are_those_of_cloud_hypervisor() {
        let targets = check(|_| {}).unwrap();
        assert_eq!(targets.serial, Some(ConsoleTarget::Null));
        assert_eq!(targets.console, Some(ConsoleTarget::Terminal));
        assert_eq!(targets.debug, None);
    }

    #[test]
    fn the_terminals_input_is_for_one_only() {
        use ConsoleOutputMode::{Off, Tty};
        let with = |serial, console| {
            check(|c| {
                c.serial.mode = serial;
                c.console.mode = console;
            })
        };
        let targets = with(Off, Tty).unwrap();
        assert_eq!(
            (targets.serial, targets.console),
            (None, Some(ConsoleTarget::Terminal))
        );
        assert!(with(Tty, Off).is_ok());
        let targets = with(Tty, Tty).unwrap();
        assert_eq!(targets.serial, Some(ConsoleTarget::Terminal));
        assert_eq!(targets.console, Some(ConsoleTarget::TerminalOutput));
    }

    #[test]
    fn a_file_or_socket_needs_a_path() {
        use ConsoleOutputMode::{File, Socket};
        for (mode, error) in [
            (File, ConfigError::NoConsoleFile as fn(_) -> _),
            (Socket, ConfigError::NoConsoleSocket),
        ] {
            assert_eq!(check(|c| c.serial.mode = mode), Err(error("serial port")));
            assert_eq!(
                check(|c| c.console.mode = mode),
                Err(error("virtio console"))
            );
        }
        assert_eq!(
            check(|c| c.debug_console.mode = File),
            Err(ConfigError::NoConsoleFile("debug console"))
        );
        assert!(matches!(
            check(|c| c.debug_console.mode = Socket),
            Err(ConfigError::Unsupported(_))
        ));
    }
}
