//! The terminal in the mode in which every key reaches the guest.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr,
};

/// Puts the terminal back when dropped, on whatever way out.
pub struct RawTerminal {
    terminal: OwnedFd,
    saved: Termios,
}

impl RawTerminal {
    /// Changes the mode of standard input; `None` if it is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let terminal = stdin.as_fd().try_clone_to_owned()?;
        let saved = tcgetattr(&terminal)?;
        let mut raw = saved.clone();
        // Output processing stays, so that messages of the program itself keep
        // their line ends.
        raw.local_modes -=
            LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
        raw.input_modes -= InputModes::ICRNL | InputModes::IXON;
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, saved }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(&self.terminal, OptionalActions::Now, &self.saved) {
            log::warn!("cannot restore the terminal: {error}");
        }
    }
}
