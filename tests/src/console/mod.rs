//! A serial line that is written to a file: the whole log stays there, and
//! whoever waits for a line does so with a deadline.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::command;

/// How often a growing file is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Lines of a log shown when something fails.
const TAIL_LINES: usize = 25;

/// Reads a log while another process writes it.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    offset: u64,
    /// Bytes after the last line end.
    rest: Vec<u8>,
}

impl Console {
    /// A log from its beginning; the file need not exist yet.
    pub fn new(path: &Path) -> Self {
        Console {
            path: path.to_owned(),
            offset: 0,
            rest: Vec::new(),
        }
    }

    /// Where the whole log is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole lines that came since the last call.
    pub fn new_lines(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(&self.path)
            && file.seek(SeekFrom::Start(self.offset)).is_ok()
            && let Ok(count) = file.read_to_end(&mut bytes)
        {
            self.offset += count as u64;
        }
        self.rest.extend_from_slice(&bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            lines.push(line.trim_end_matches(['\r', '\n']).to_owned());
        }
        lines
    }

    /// Everything written so far, whether or not it was seen before.
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Everything written so far, as it is.
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap_or_default()
    }

    /// Waits until a line contains `needle` and returns that line. `alive`
    /// says whether the writer still runs: after its end nothing comes.
    pub fn wait_for(
        &mut self,
        needle: &str,
        within: Duration,
        mut alive: impl FnMut() -> bool,
    ) -> Result<String> {
        let deadline = Instant::now() + within;
        loop {
            // Asked before reading, so that last words are not missed.
            let may_write = alive();
            if let Some(line) = self
                .new_lines()
                .into_iter()
                .find(|line| line.contains(needle))
            {
                return Ok(line);
            }
            if !may_write {
                bail!(
                    "The writer ended before it wrote {needle:?}\n{}",
                    self.tail()
                );
            }
            if Instant::now() >= deadline {
                bail!(
                    "No {needle:?} within {} s\n{}",
                    within.as_secs(),
                    self.tail()
                );
            }
            sleep(POLL);
        }
    }

    /// Waits until `needle` was written `times` times, over again from the log's
    /// beginning.
    pub fn wait_for_nth(
        &self,
        needle: &str,
        times: u64,
        within: Duration,
        mut alive: impl FnMut() -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let may_write = alive();
            let seen = self.text().matches(needle).count() as u64;
            if seen >= times {
                return Ok(());
            }
            ensure!(
                may_write && Instant::now() < deadline,
                "{needle:?} came {seen} times, not {times}\n{}",
                self.tail()
            );
            sleep(POLL);
        }
    }

    /// Waits until `needle` was written after `mark` was for the `nth` time.
    pub fn wait_for_after(
        &self,
        (mark, nth): (&str, usize),
        needle: &str,
        within: Duration,
        mut alive: impl FnMut() -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let may_write = alive();
            let text = self.text();
            let mut parts = text.split(mark).skip(nth);
            if parts.any(|part| part.contains(needle)) {
                return Ok(());
            }
            ensure!(
                may_write && Instant::now() < deadline,
                "No {needle:?} after {mark:?} for the {nth}. time\n{}",
                self.tail()
            );
            sleep(POLL);
        }
    }

    /// Waits until so many bytes were written, and returns all there are.
    pub fn wait_for_bytes(
        &self,
        count: u64,
        within: Duration,
        mut alive: impl FnMut() -> bool,
    ) -> Result<Vec<u8>> {
        let deadline = Instant::now() + within;
        loop {
            let may_write = alive();
            let bytes = self.bytes();
            if bytes.len() as u64 >= count {
                return Ok(bytes);
            }
            ensure!(
                may_write && Instant::now() < deadline,
                "Only {} of {count} bytes are in {}",
                bytes.len(),
                self.path.display()
            );
            sleep(POLL);
        }
    }

    /// The end of the log with the path of the whole, for an error message.
    pub fn tail(&self) -> String {
        format!(
            "--- the end of {} ---\n{}\n---",
            self.path.display(),
            command::tail(&self.text(), TAIL_LINES)
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn half_a_line_waits_for_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "one\r\ntw").unwrap();
        let mut console = Console::new(&path);
        assert_eq!(console.new_lines(), ["one"]);
        fs::write(&path, "one\r\ntwo\n").unwrap();
        assert_eq!(console.new_lines(), ["two"]);
    }

    #[test]
    fn waiting_for_a_dead_writer_ends_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "hello\n").unwrap();
        let error = Console::new(&path)
            .wait_for("never", Duration::from_secs(60), || false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("hello") && error.contains("log"), "{error}");
    }

    #[test]
    fn only_what_came_after_the_mark_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "up work up idle").unwrap();
        let console = Console::new(&path);
        let came = |nth, needle| {
            console
                .wait_for_after(("up", nth), needle, Duration::ZERO, || true)
                .is_ok()
        };
        assert!(came(1, "work") && came(1, "idle") && came(2, "idle"));
        assert!(!came(2, "work") && !came(3, "idle"));
    }

    #[test]
    fn last_words_of_a_dead_writer_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "bye now\n").unwrap();
        let line = Console::new(&path)
            .wait_for("bye", Duration::ZERO, || false)
            .unwrap();
        assert_eq!(line, "bye now");
    }
}
