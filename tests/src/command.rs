//! Running other programs: one place that keeps their output and says what
//! went wrong when one fails.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a failed program's output worth showing.
const TAIL_LINES: usize = 30;

/// A command from words.
pub fn command<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// A command that ends with us, however we end: an emulator would otherwise
/// survive an interrupted run and keep a processor busy.
pub fn bound_command<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut bound = command("setpriv", ["--pdeathsig", "KILL", program]);
    bound.args(args);
    bound
}

/// Runs to the end and returns standard output; a failure carries the command
/// and the tail of what it said.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let shown = describe(command);
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("Cannot start `{shown}`"))?;
    if !out.status.success() {
        let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&out.stderr));
        bail!(
            "`{shown}` failed ({})\n{}",
            out.status,
            tail(&text, TAIL_LINES)
        );
    }
    Ok(out.stdout)
}

/// Like [`output`], as text without the last newline.
pub fn text(command: &mut Command) -> Result<String> {
    let out = output(command)?;
    Ok(String::from_utf8_lossy(&out).trim_end().to_owned())
}

/// Like [`text`], with something to read; what it says on standard error is
/// part of the outcome.
pub fn fed(command: &mut Command, input: &str) -> Result<String> {
    let shown = describe(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Cannot start `{shown}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends before it has read all says why below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let out = child.wait_with_output()?;
    let mut said = String::from_utf8_lossy(&out.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&out.stderr));
    if !out.status.success() {
        bail!(
            "`{shown}` failed ({})\n{}",
            out.status,
            tail(&said, TAIL_LINES)
        );
    }
    Ok(said)
}

/// Runs to the end with our own terminal as its output.
pub fn visible(command: &mut Command) -> Result<()> {
    let shown = describe(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("Cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn describe(command: &Command) -> String {
    let mut shown = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        shown.push(' ');
        shown.push_str(&arg.to_string_lossy());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_command_reports_what_it_said() {
        let error = output(&mut command("sh", ["-c", "echo no such thing; exit 3"])).unwrap_err();
        let shown = format!("{error:#}");
        assert!(
            shown.contains("no such thing") && shown.contains("exit status: 3"),
            "{shown}"
        );
    }

    #[test]
    fn tail_keeps_the_last_lines_only() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
