//! Which sockets there are.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// A pattern that no file name could match.
#[derive(Debug, thiserror::Error)]
#[error("Invalid pattern {pattern:?} for sockets")]
pub struct PatternError {
    pattern: String,
    source: glob::PatternError,
}

/// Where to look.
#[derive(Debug)]
pub struct Patterns(Vec<String>);

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Sockets, by the name that they have in metrics. A path that was given
    /// without wildcards is among them whether it is there or not.
    pub sockets: BTreeMap<String, PathBuf>,
    /// Folders that could not be read, so that sockets may be missing.
    pub unreadable: BTreeSet<PathBuf>,
}

impl Patterns {
    /// Paths of sockets; `*`, `?` and `[…]` stand for what they stand for in a
    /// shell.
    ///
    /// # Errors
    ///
    /// A pattern is not valid.
    pub fn new(patterns: &[String]) -> Result<Self, PatternError> {
        for pattern in patterns {
            glob::Pattern::new(pattern).map_err(|source| PatternError {
                pattern: pattern.clone(),
                source,
            })?;
        }
        Ok(Patterns(patterns.to_vec()))
    }

    /// Looks now.
    pub fn find(&self) -> Found {
        let mut found = Found::default();
        for pattern in &self.0 {
            if !pattern.contains(['*', '?', '[']) {
                let path = PathBuf::from(pattern);
                found.sockets.insert(name_of(&path), path);
                continue;
            }
            for entry in glob::glob(pattern).into_iter().flatten() {
                match entry {
                    Err(error) => {
                        found.unreadable.insert(error.path().to_owned());
                    }
                    Ok(path) => match is_socket(&path) {
                        Ok(false) => {}
                        Ok(true) => {
                            found.sockets.insert(name_of(&path), path);
                        }
                        // Gone since the folder was read.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(_) => {
                            let folder = path.parent().unwrap_or(&path);
                            found.unreadable.insert(folder.to_owned());
                        }
                    },
                }
            }
        }
        found
    }
}

/// The name of a socket in metrics: its path. Bytes that are not UTF-8 are
/// written as `\xNN`.
fn name_of(path: &Path) -> String {
    let mut name = String::new();
    for chunk in OsStr::new(path).as_bytes().utf8_chunks() {
        name.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(name, "\\x{byte:02x}");
        }
    }
    name
}

fn is_socket(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_pattern_that_cannot_match_is_refused() {
        assert!(Patterns::new(&["a***".to_string()]).is_err());
    }

    #[test]
    fn wildcards_find_sockets_and_paths_stand_for_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let _listener = UnixListener::bind(at("vm.sock")).unwrap();
        std::fs::write(at("file.sock"), "").unwrap();
        let missing = at("missing").display().to_string();
        let wildcard = at("*.sock").display().to_string();
        let found = Patterns::new(&[wildcard, missing.clone()]).unwrap().find();
        let names: Vec<_> = found.sockets.keys().cloned().collect();
        assert_eq!(names, [missing, at("vm.sock").display().to_string()]);
        assert!(found.unreadable.is_empty());
    }

    #[test]
    fn names_of_different_paths_differ_though_they_are_not_text() {
        let name = |bytes: &[u8]| name_of(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(name(b"/run/\xffa"), "/run/\\xffa");
        assert_ne!(name(b"/run/\xff"), name(b"/run/\xfe"));
    }
}
