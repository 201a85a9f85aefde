//! Writes initramfs archives (cpio, "newc") without root and without cpio.
//!
//! The kernel unpacks archives one after the other, so a per-test archive can
//! simply follow the base image.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const SYMLINK: u32 = 0o120_000;

/// An archive in the making.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    inode: u32,
}

impl Cpio {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file with its mode; its parent folders are made as needed.
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.parents(path);
        self.entry(path, REGULAR | mode, (0, 0), content);
        self
    }

    /// A copy of a file of this machine.
    pub fn copy(self, path: &str, mode: u32, from: &Path) -> Result<Self> {
        let content = fs::read(from).with_context(|| format!("Cannot read {}", from.display()))?;
        Ok(self.file(path, mode, &content))
    }

    /// An empty folder.
    pub fn folder(mut self, path: &str) -> Self {
        self.parents(&format!("{path}/"));
        self
    }

    /// A symbolic link.
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        self.parents(path);
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
        self
    }

    /// A character device, such as the console that `init` is given.
    pub fn device(mut self, path: &str, major: u32, minor: u32) -> Self {
        self.parents(path);
        self.entry(path, CHARACTER_DEVICE | 0o600, (major, minor), &[]);
        self
    }

    /// The archive's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            let folder = &path[..end];
            if !folder.is_empty() && self.folders.insert(folder.to_owned()) {
                self.entry(folder, DIRECTORY | 0o755, (0, 0), &[]);
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let name = path.trim_start_matches('/');
        let fields = [
            self.inode,
            mode,
            0, // user
            0, // group
            if mode & DIRECTORY == DIRECTORY { 2 } else { 1 },
            0, // time: none, so that equal inputs make equal archives
            content.len() as u32,
            0, // device of the file system
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // checksum, unused by this variant
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_once_and_before_their_files() {
        let bytes = Cpio::new()
            .file("/a/b/f", 0o644, b"x")
            .file("/a/b/g", 0o644, b"")
            .finish();
        assert_eq!(names(&bytes), ["a", "a/b", "a/b/f", "a/b/g", "TRAILER!!!"]);
    }

    /// The names in an archive, found by the sizes in its headers.
    fn names(bytes: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let field = |index: usize| {
                let start = at + 6 + 8 * index;
                let text = str::from_utf8(&bytes[start..start + 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (content, name) = (field(6), field(11));
            let start = at + 110;
            names.push(String::from_utf8(bytes[start..start + name - 1].to_vec()).unwrap());
            at = (start + name).next_multiple_of(4) + content.next_multiple_of(4);
        }
        names
    }

    #[test]
    fn every_header_starts_on_a_word() {
        let bytes = Cpio::new()
            .file("/abc", 0o644, b"12345")
            .device("/dev/console", 5, 1)
            .finish();
        let mut starts = bytes.windows(6).enumerate().filter(|(_, w)| w == b"070701");
        assert!(starts.all(|(at, _)| at % 4 == 0));
        assert_eq!(bytes.len() % 4, 0);
    }
}
