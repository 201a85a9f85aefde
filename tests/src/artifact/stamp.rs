//! Is an artifact still the one that its inputs make?

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Collects the inputs of an artifact.
#[derive(Default)]
pub struct Inputs(Sha256);

impl Inputs {
    /// No inputs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A value that matters, such as a version or an option.
    pub fn value(mut self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.0.update((value.len() as u64).to_le_bytes());
        self.0.update(value);
        self
    }

    /// A file's content.
    pub fn file(self, path: &Path) -> Result<Self> {
        let content = fs::read(path).with_context(|| format!("Cannot read {}", path.display()))?;
        Ok(self.value(&content))
    }

    /// Every file below a folder, with its name.
    pub fn folder(mut self, folder: &Path) -> Result<Self> {
        for path in files_below(folder)? {
            let name = path.strip_prefix(folder).unwrap_or(&path);
            self = self.value(name.to_string_lossy().as_bytes()).file(&path)?;
        }
        Ok(self)
    }

    /// The hash of them all.
    pub fn hash(self) -> String {
        self.0
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// All regular files below a folder, in a fixed order.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("Cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Makes an artifact unless it exists and was made from the same inputs.
/// Says whether it was made.
pub fn unless_current(
    artifact: &Path,
    hash: &str,
    make: impl FnOnce() -> Result<()>,
) -> Result<bool> {
    let stamp = stamp_path(artifact);
    if is_current(artifact, hash) {
        return Ok(false);
    }
    // An interrupted run must not leave a stamp that vouches for half a file.
    let _ = fs::remove_file(&stamp);
    if let Some(parent) = artifact.parent() {
        fs::create_dir_all(parent).with_context(|| format!("Cannot make {}", parent.display()))?;
    }
    make()?;
    fs::write(&stamp, hash).with_context(|| format!("Cannot write {}", stamp.display()))?;
    Ok(true)
}

/// Whether the artifact exists and was made from these inputs.
pub fn is_current(artifact: &Path, hash: &str) -> bool {
    artifact.exists()
        && fs::read_to_string(stamp_path(artifact)).is_ok_and(|stamped| stamped == hash)
}

fn stamp_path(artifact: &Path) -> PathBuf {
    let mut name = artifact.file_name().unwrap_or_default().to_owned();
    name.push(".inputs");
    artifact.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifact_is_made_again_only_when_an_input_changes() {
        let dir = tempfile::tempdir().unwrap();
        let artifact = dir.path().join("a");
        let make = || fs::write(&artifact, "x").map_err(Into::into);
        assert!(unless_current(&artifact, "1", make).unwrap());
        assert!(!unless_current(&artifact, "1", || panic!("made twice")).unwrap());
        assert!(unless_current(&artifact, "2", make).unwrap());
    }

    #[test]
    fn failed_make_leaves_no_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let artifact = dir.path().join("a");
        fs::write(&artifact, "half").unwrap();
        assert!(unless_current(&artifact, "1", || anyhow::bail!("no")).is_err());
        assert!(!is_current(&artifact, "1"));
    }

    #[test]
    fn renaming_a_file_changes_the_hash_of_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "x").unwrap();
        let before = Inputs::new().folder(dir.path()).unwrap().hash();
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_ne!(before, Inputs::new().folder(dir.path()).unwrap().hash());
    }
}
