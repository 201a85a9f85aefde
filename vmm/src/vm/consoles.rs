//! The host's ends of a configuration's consoles. They are opened when the
//! configuration arrives, before Landlock closes the file system, and stay
//! until it is deleted: a reboot of the guest disconnects nobody.

use std::io;

use api_client::config::VmConfig;

use crate::chardev::{CharBackend, ConsoleTarget};
use crate::config::{ConfigError, ConsoleTargets};

/// Why consoles cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The configuration.
    #[error("The configuration is not valid")]
    Config(#[from] ConfigError),
    /// What it names.
    #[error("The {0} cannot be connected")]
    Open(&'static str, #[source] io::Error),
}

/// Serial port, virtio console and debug port, as far as there are any.
#[derive(Debug, Clone)]
pub struct Consoles {
    pub(super) serial: Option<CharBackend>,
    pub(super) console: Option<CharBackend>,
    pub(super) debug: Option<CharBackend>,
}

impl Consoles {
    /// Opens them, and notes in the configuration where pseudo terminals are.
    pub fn open(config: &mut VmConfig) -> Result<Self, ConsoleError> {
        let targets = ConsoleTargets::try_from(&*config)?;
        if targets.console == Some(ConsoleTarget::TerminalOutput) {
            log::warn!(
                "serial port and virtio console share the terminal; what is typed goes to the \
                 serial port"
            );
        }
        let consoles = Self {
            serial: open("serial port", targets.serial.as_ref())?,
            console: open("virtio console", targets.console.as_ref())?,
            debug: open("debug console", targets.debug.as_ref())?,
        };
        for (name, end, file) in [
            ("serial port", &consoles.serial, &mut config.serial.file),
            (
                "virtio console",
                &consoles.console,
                &mut config.console.file,
            ),
            (
                "debug console",
                &consoles.debug,
                &mut config.debug_console.file,
            ),
        ] {
            if let Some(path) = end.as_ref().and_then(CharBackend::pseudo_terminal_path) {
                log::info!("the {name} is at {}", path.display());
                *file = Some(path.to_owned());
            }
        }
        Ok(consoles)
    }
}

fn open(
    name: &'static str,
    target: Option<&ConsoleTarget>,
) -> Result<Option<CharBackend>, ConsoleError> {
    target
        .map(|target| CharBackend::open(target).map_err(|source| ConsoleError::Open(name, source)))
        .transpose()
}

#[cfg(test)]
mod tests {
    use api_client::config::ConsoleOutputMode;

    use super::*;

    #[test]
    fn pseudo_terminals_are_noted_in_the_configuration() {
        let mut config = VmConfig::default();
        config.serial.mode = ConsoleOutputMode::Pty;
        config.console.mode = ConsoleOutputMode::Pty;
        config.debug_console.mode = ConsoleOutputMode::Pty;
        let consoles = Consoles::open(&mut config).unwrap();
        let paths = [
            config.serial.file.unwrap(),
            config.console.file.unwrap(),
            config.debug_console.file.unwrap(),
        ];
        assert!(paths.iter().all(|path| path.starts_with("/dev/pts")));
        assert!(paths[0] != paths[1] && paths[1] != paths[2]);
        let end = consoles.serial.unwrap();
        assert_eq!(end.pseudo_terminal_path().unwrap(), paths[0]);
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let mut config = VmConfig::default();
        config.serial.mode = ConsoleOutputMode::File;
        config.serial.file = Some("/no/such/folder/file".into());
        let error = Consoles::open(&mut config).unwrap_err();
        assert_eq!(error.to_string(), "The serial port cannot be connected");
    }
}
