//! A terminal of a fixed size, by tmux, with one program in it.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::command::{command, output, text};

/// Columns and rows.
const SIZE: (&str, &str) = ("110", "30");
/// How long the screen may take to show what is expected.
const PATIENCE: Duration = Duration::from_secs(20);

/// A tmux server of its own; ends with the value.
#[derive(Debug)]
pub struct Terminal {
    server: PathBuf,
}

impl Terminal {
    /// Runs a shell command. What it leaves behind stays on the screen.
    pub fn run(folder: &Path, shell: &str) -> Result<Self> {
        let terminal = Terminal {
            server: folder.join("tmux"),
        };
        let kept = format!("{shell}; echo \"[ended: $?]\"; sleep 60");
        output(
            command("tmux", ["-f", "/dev/null", "-S"])
                .arg(&terminal.server)
                .args(["new-session", "-d", "-x", SIZE.0, "-y", SIZE.1, &kept])
                .env("LC_ALL", "C.UTF-8")
                .env("TERM", "xterm-256color"),
        )?;
        Ok(terminal)
    }

    /// Presses keys, by tmux's names of them.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        output(self.tmux(&["send-keys"]).args(keys)).map(drop)
    }

    /// What is on the screen.
    pub fn screen(&self) -> Result<String> {
        text(&mut self.tmux(&["capture-pane", "-p"]))
    }

    /// The same with the sequences that colour it.
    pub fn coloured_screen(&self) -> Result<String> {
        text(&mut self.tmux(&["capture-pane", "-p", "-e"]))
    }

    /// Waits until the screen is as it should be, and returns it.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen()?;
            if holds(&screen) {
                return Ok(screen);
            }
            if Instant::now() > deadline {
                bail!("The screen does not show {what}:\n{screen}");
            }
            sleep(Duration::from_millis(50));
        }
    }

    fn tmux(&self, args: &[&str]) -> std::process::Command {
        let mut tmux = command("tmux", ["-S"]);
        tmux.arg(&self.server).args(args).env("LC_ALL", "C.UTF-8");
        tmux
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = output(&mut self.tmux(&["kill-server"]));
    }
}
