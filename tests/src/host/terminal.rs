//! Terminals: a pseudo one for an emulator that insists on having one, and
//! the person's own in raw mode for a shell.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Ctrl-] as telnet has it: the way out when the far side no longer answers.
const ESCAPE: u8 = 0x1d;

/// A terminal that nobody looks at.
pub struct PseudoTerminal {
    master: OwnedFd,
    slave: PathBuf,
}

impl PseudoTerminal {
    /// Makes one.
    pub fn open() -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("Cannot open a pseudo-terminal")?;
        grantpt(&master).context("Cannot take the pseudo-terminal")?;
        unlockpt(&master).context("Cannot unlock the pseudo-terminal")?;
        let name = ptsname(&master, Vec::new()).context("The pseudo-terminal has no name")?;
        let slave = PathBuf::from(std::ffi::OsStr::from_bytes(name.as_bytes()));
        Ok(PseudoTerminal { master, slave })
    }

    /// The side that a program is given.
    pub fn slave(&self) -> Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.slave)
            .with_context(|| format!("Cannot open {}", self.slave.display()))
    }

    /// Keeps what the program shows, so that it never waits for a reader. A
    /// terminal of its own that the program names between `announced` and a
    /// quotation mark is read, too, and what comes from there dropped.
    pub fn drain_to(self, mut log: File, announced: &'static str) {
        thread::spawn(move || {
            let mut master = File::from(self.master);
            let mut buffer = [0; 4096];
            // Until the name was seen.
            let mut shown = Some(String::new());
            while let Ok(count) = master.read(&mut buffer) {
                if count == 0 || log.write_all(&buffer[..count]).is_err() {
                    break;
                }
                let Some(text) = &mut shown else { continue };
                text.push_str(&String::from_utf8_lossy(&buffer[..count]));
                if let Some(name) = quoted_after(text, announced) {
                    let name = name.to_owned();
                    thread::spawn(move || drop_all_from(&name));
                    shown = None;
                }
            }
        });
    }
}

/// What stands between `start` and the next quotation mark.
fn quoted_after<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once('"').map(|(name, _)| name)
}

/// Reads a terminal until its program ends.
fn drop_all_from(name: &str) {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(terminal) = open(name, flags, Mode::empty()) else {
        return;
    };
    // As a terminal is at first, it would wait for ends of lines, and echo.
    if let Ok(mut mode) = tcgetattr(&terminal) {
        mode.make_raw();
        let _ = tcsetattr(&terminal, OptionalActions::Now, &mode);
    }
    let mut terminal = File::from(terminal);
    let mut buffer = [0; 4096];
    while terminal.read(&mut buffer).is_ok_and(|count| count > 0) {}
}

/// Our terminal in raw mode; as it was when dropped.
struct RawMode(Option<Termios>);

impl RawMode {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(RawMode(None));
        }
        let before = tcgetattr(&stdin).context("Cannot read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Flush, &raw)
            .context("Cannot set the terminal's mode")?;
        Ok(RawMode(Some(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, before);
        }
    }
}

/// Copies between our terminal and a serial line until the line closes or
/// Ctrl-] is typed.
pub fn bridge(line: TcpStream) -> Result<()> {
    let _raw = RawMode::enter()?;
    let mut to_line = line.try_clone().context("Cannot share the serial line")?;
    // Reads our input for good: it ends with the process, not with the line.
    thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let mut byte = [0];
        while stdin.read(&mut byte).is_ok_and(|count| count == 1) {
            if byte[0] == ESCAPE {
                let _ = to_line.shutdown(Shutdown::Both);
                break;
            }
            if to_line.write_all(&byte).is_err() {
                break;
            }
        }
    });
    let mut from_line = line;
    let mut stdout = std::io::stdout();
    let mut buffer = [0; 1024];
    // A reset is how an emulator that ended looks from here.
    while let Ok(count) = from_line.read(&mut buffer) {
        if count == 0 {
            break;
        }
        stdout.write_all(&buffer[..count])?;
        stdout.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_known_once_its_end_was_read() {
        let start = "connected to screen \"";
        assert_eq!(
            quoted_after("Bochs connected to screen \"/dev/p", start),
            None
        );
        let whole = "\r\nBochs connected to screen \"/dev/pts/3\"\r\n";
        assert_eq!(quoted_after(whole, start), Some("/dev/pts/3"));
    }
}
