//! Which files the calling thread, and every thread it starts from then on,
//! can access. What is open already stays open.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, make_bitflags,
};

/// Less than this cannot tell apart what is moved or linked where. Linux 5.19
/// has it.
const NEEDED: ABI = ABI::V2;
/// More than `NEEDED` by cutting files short, which Linux has from 6.2 on;
/// before, that takes a right to write as well.
const WANTED: ABI = ABI::V3;

/// What may be done below a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathAccess {
    /// Read files.
    Read,
    /// Write and make files.
    Write,
    /// Both.
    ReadWrite,
    /// Make and remove sockets in a folder.
    Sockets,
}

/// A path that stays reachable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRule {
    /// A file, or a folder with everything in it.
    pub path: PathBuf,
    /// What may be done.
    pub access: PathAccess,
}

impl PathRule {
    /// What making and removing a socket takes: rights on its folder.
    #[must_use]
    pub fn for_socket(socket: &Path) -> Self {
        let folder = match socket.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        Self {
            path: folder.to_owned(),
            access: PathAccess::Sockets,
        }
    }
}

/// Why the thread is not confined.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// Too old, or built or started without it.
    #[error(
        "This kernel does not offer Landlock, of which version 2 (Linux 5.19) is needed; \
         leave --landlock out, or start the kernel with lsm=landlock,..."
    )]
    Unavailable,
    /// A path that cannot be kept reachable.
    #[error("Landlock cannot keep {} reachable", .0.display())]
    Path(PathBuf, #[source] PathFdError),
    /// The kernel refuses.
    #[error("Landlock cannot be switched on")]
    Kernel(#[source] RulesetError),
}

fn rights(access: PathAccess) -> BitFlags<AccessFs> {
    match access {
        PathAccess::Read => AccessFs::from_read(WANTED),
        PathAccess::Write => AccessFs::from_write(WANTED),
        PathAccess::ReadWrite => AccessFs::from_all(WANTED),
        PathAccess::Sockets => make_bitflags!(AccessFs::{MakeSock | RemoveFile}),
    }
}

/// Takes everything away but these paths, for good.
pub fn confine(paths: &[PathRule]) -> Result<(), LandlockError> {
    let needed = AccessFs::from_all(NEEDED);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(needed)
        .map_err(|_| LandlockError::Unavailable)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED) & !needed)
        .and_then(Ruleset::create)
        .map_err(LandlockError::Kernel)?;
    for PathRule { path, access } in paths {
        let place =
            PathFd::new(path).map_err(|source| LandlockError::Path(path.clone(), source))?;
        let mut allowed = rights(*access);
        if !path.is_dir() {
            // A file has nothing below it.
            allowed &= AccessFs::from_file(WANTED);
        }
        rules = rules
            .add_rule(PathBeneath::new(place, allowed))
            .map_err(LandlockError::Kernel)?;
    }
    let status = rules.restrict_self().map_err(LandlockError::Kernel)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(LandlockError::Unavailable);
    }
    Ok(())
}

/// Takes everything away but these paths, for good, from a thread that exists
/// before a configuration says whether the VM is confined: what the thread
/// does needs no more, confined or not. Without Landlock nothing changes.
pub fn confine_early(paths: &[PathRule]) -> Result<(), LandlockError> {
    match confine(paths) {
        Err(LandlockError::Unavailable) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::ErrorKind;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Runs what confines itself on a thread of its own. False where the
    /// kernel has no Landlock, which is then what it says.
    fn confined(paths: Vec<PathRule>, check: impl FnOnce() + Send + 'static) -> bool {
        let thread = std::thread::spawn(move || match confine(&paths) {
            Ok(()) => {
                check();
                true
            }
            Err(LandlockError::Unavailable) => false,
            Err(error) => panic!("{error}"),
        });
        thread.join().unwrap()
    }

    fn reachable(path: impl Into<PathBuf>, access: PathAccess) -> PathRule {
        PathRule {
            path: path.into(),
            access,
        }
    }

    #[test]
    fn only_what_is_named_can_be_opened_and_only_so() {
        let dir = tempfile::tempdir().unwrap();
        let [read, both, other] = ["read", "both", "other"].map(|name| dir.path().join(name));
        for path in [&read, &both, &other] {
            fs::write(path, "text").unwrap();
        }
        let paths = vec![
            reachable(&read, PathAccess::Read),
            reachable(&both, PathAccess::ReadWrite),
        ];
        let outside = other.clone();
        confined(paths, move || {
            let refused = |result: Result<File, std::io::Error>| {
                result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
            };
            assert!(File::open(&read).is_ok());
            assert!(refused(File::options().write(true).open(&read)));
            assert!(File::options().read(true).write(true).open(&both).is_ok());
            assert!(refused(File::open(&outside)));
            assert!(refused(File::open("/proc/version")));
        });
        assert!(File::open(&other).is_ok(), "other threads go on as before");
    }

    #[test]
    fn a_folder_for_sockets_takes_sockets_only() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        confined(vec![reachable(&folder, PathAccess::Sockets)], move || {
            let path = folder.join("socket");
            drop(UnixListener::bind(&path).unwrap());
            fs::remove_file(&path).unwrap();
            assert!(File::create(folder.join("file")).is_err());
        });
    }

    #[test]
    fn a_path_that_is_not_there_is_named() {
        let paths = vec![reachable("/no/such/path", PathAccess::Read)];
        let error = std::thread::spawn(move || confine(&paths))
            .join()
            .unwrap()
            .unwrap_err();
        let named = error.to_string().contains("/no/such/path");
        assert!(named || matches!(error, LandlockError::Unavailable));
    }
}
