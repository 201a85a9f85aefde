//! `--serial`, `--console` and `--debug-console`

use std::path::PathBuf;
use std::str::FromStr;

use super::pci::{pci_common, with_pci};
use super::{OptionError, Options};
use crate::config::{
    ConsoleConfig, ConsoleOutputMode, DEBUG_CONSOLE_IO_BASE, DebugConsoleConfig, SerialConfig,
};

const WORDS: [&str; 4] = ["off", "null", "pty", "tty"];

/// Where a console's bytes go, with the path that some modes need.
struct Target {
    mode: ConsoleOutputMode,
    file: Option<PathBuf>,
    socket: Option<PathBuf>,
}

fn target(options: &Options<'_>) -> Result<Option<Target>, OptionError> {
    let file = options.text("file").map(PathBuf::from);
    let socket = options.text("socket").map(PathBuf::from);
    let mode = match (options.words(), &file, &socket) {
        ([], None, None) => return Ok(None),
        (["off"], None, None) => ConsoleOutputMode::Off,
        (["null"], None, None) => ConsoleOutputMode::Null,
        (["pty"], None, None) => ConsoleOutputMode::Pty,
        (["tty"], None, None) => ConsoleOutputMode::Tty,
        ([], Some(_), None) => ConsoleOutputMode::File,
        ([], None, Some(_)) => ConsoleOutputMode::Socket,
        _ => {
            return Err(OptionError::Combination(
                "only one of off, null, pty, tty, file and socket can be used".into(),
            ));
        }
    };
    Ok(Some(Target { mode, file, socket }))
}

impl FromStr for SerialConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse_for("SerialConfig", text, &["file", "socket"], &WORDS)?;
        Ok(match target(&options)? {
            Some(Target { mode, file, socket }) => SerialConfig { mode, file, socket },
            None => SerialConfig::default(),
        })
    }
}

impl FromStr for ConsoleConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &with_pci(&["file", "socket"]), &WORDS)?;
        let pci_common = pci_common(&options)?;
        Ok(match target(&options)? {
            Some(Target { mode, file, socket }) => ConsoleConfig {
                pci_common,
                mode,
                file,
                socket,
            },
            None => ConsoleConfig {
                pci_common,
                ..ConsoleConfig::default()
            },
        })
    }
}

impl FromStr for DebugConsoleConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &["file", "iobase"], &WORDS)?;
        let iobase = Some(options.number("iobase")?.unwrap_or(DEBUG_CONSOLE_IO_BASE));
        Ok(match target(&options)? {
            Some(Target { mode, file, .. }) => DebugConsoleConfig { mode, file, iobase },
            None => DebugConsoleConfig {
                iobase,
                ..DebugConsoleConfig::default()
            },
        })
    }
}
