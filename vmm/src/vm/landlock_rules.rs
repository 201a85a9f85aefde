//! What a configuration needs of the file system, for Landlock.

use std::path::{Path, PathBuf};

use api_client::config::{ConsoleOutputMode, VmConfig};

use crate::config::ConfigError;
use crate::sandbox::{PathAccess, PathRule};

/// Every path that building, running and rebooting the machine takes, and
/// those that the client adds.
pub(super) fn landlock_rules(config: &VmConfig) -> Result<Vec<PathRule>, ConfigError> {
    let mut paths = Paths::default();
    paths.add("/dev/urandom", PathAccess::Read);
    if let Some(payload) = &config.payload {
        for file in [&payload.kernel, &payload.firmware, &payload.initramfs] {
            paths.add_some(file.as_ref(), PathAccess::Read);
        }
    }
    for disk in config.disks.iter().flatten() {
        let access = if disk.readonly {
            PathAccess::Read
        } else {
            PathAccess::ReadWrite
        };
        paths.add_some(disk.path.as_ref(), access);
    }
    if config.net.as_ref().is_some_and(|net| !net.is_empty()) {
        paths.add_network();
    }
    paths.add(&config.rng.src, PathAccess::Read);
    for zone in config.memory.zones.iter().flatten() {
        paths.add_some(zone.file.as_ref(), PathAccess::ReadWrite);
    }
    if let Some(vsock) = &config.vsock {
        paths.0.push(PathRule::for_socket(&vsock.socket));
    }
    let serial = &config.serial;
    let console = &config.console;
    let debug = &config.debug_console;
    for (mode, file, socket) in [
        (serial.mode, &serial.file, &serial.socket),
        (console.mode, &console.file, &console.socket),
        (debug.mode, &debug.file, &None),
    ] {
        match mode {
            ConsoleOutputMode::File => paths.add_some(file.as_ref(), PathAccess::ReadWrite),
            ConsoleOutputMode::Socket => {
                if let Some(socket) = socket {
                    paths.0.push(PathRule::for_socket(socket));
                }
            }
            ConsoleOutputMode::Pty => {
                paths.add("/dev/ptmx", PathAccess::ReadWrite);
                paths.add("/dev/pts", PathAccess::ReadWrite);
            }
            _ => {}
        }
    }
    for rule in config.landlock_rules.iter().flatten() {
        let access = match rule.access.as_str() {
            "r" => PathAccess::Read,
            "w" => PathAccess::Write,
            "rw" => PathAccess::ReadWrite,
            _ => return Err(ConfigError::LandlockAccess(rule.access.clone())),
        };
        paths.add(&rule.path, access);
    }
    Ok(paths.0)
}

#[derive(Default)]
struct Paths(Vec<PathRule>);

impl Paths {
    fn add(&mut self, path: impl AsRef<Path>, access: PathAccess) {
        self.0.push(PathRule {
            path: path.as_ref().to_owned(),
            access,
        });
    }

    fn add_some(&mut self, path: Option<&PathBuf>, access: PathAccess) {
        if let Some(path) = path {
            self.add(path, access);
        }
    }

    fn add_network(&mut self) {
        // The second says whether an interface has several queues; a host
        // without virtual interfaces does not have it yet.
        self.add("/dev/net/tun", PathAccess::ReadWrite);
        let interfaces = Path::new("/sys/devices/virtual/net");
        if interfaces.exists() {
            self.add(interfaces, PathAccess::Read);
        }
    }
}

#[cfg(test)]
mod tests {
    use api_client::config::{DiskConfig, LandlockConfig, PayloadConfig, VsockConfig};

    use super::*;

    fn has(paths: &[PathRule], path: &str, access: PathAccess) -> bool {
        paths
            .iter()
            .any(|known| known.path == Path::new(path) && known.access == access)
    }

    #[test]
    fn a_machine_needs_its_files_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console");
        let disk = |path: &str, readonly| DiskConfig {
            path: Some(path.into()),
            readonly,
            ..DiskConfig::default()
        };
        let mut config = VmConfig {
            payload: Some(PayloadConfig {
                kernel: Some("/k".into()),
                initramfs: Some("/i".into()),
                ..PayloadConfig::default()
            }),
            disks: Some(vec![disk("/d", false), disk("/r", true)]),
            vsock: Some(VsockConfig {
                cid: 3,
                socket: "/run/vm/vsock".into(),
                ..VsockConfig::default()
            }),
            ..VmConfig::default()
        };
        config.serial.mode = ConsoleOutputMode::File;
        config.serial.file = Some(log.clone());
        let paths = landlock_rules(&config).unwrap();
        for (path, access) in [
            ("/k", PathAccess::Read),
            ("/i", PathAccess::Read),
            ("/d", PathAccess::ReadWrite),
            ("/r", PathAccess::Read),
            ("/run/vm", PathAccess::Sockets),
            ("/dev/urandom", PathAccess::Read),
            (log.to_str().unwrap(), PathAccess::ReadWrite),
        ] {
            assert!(has(&paths, path, access), "{path}: {paths:?}");
        }
        assert!(
            !paths
                .iter()
                .any(|known| known.path == Path::new("/dev/net/tun"))
        );
    }

    #[test]
    fn rules_add_to_it_and_their_access_is_checked() {
        let with = |access: &str| {
            landlock_rules(&VmConfig {
                landlock_rules: Some(vec![LandlockConfig {
                    path: "/more".into(),
                    access: access.into(),
                }]),
                ..VmConfig::default()
            })
        };
        for (text, access) in [
            ("r", PathAccess::Read),
            ("w", PathAccess::Write),
            ("rw", PathAccess::ReadWrite),
        ] {
            assert!(has(&with(text).unwrap(), "/more", access));
        }
        assert_eq!(with("x"), Err(ConfigError::LandlockAccess("x".into())));
    }
}
