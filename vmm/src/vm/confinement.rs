//! What a configuration needs of the file system, for Landlock.

use std::path::{Path, PathBuf};

use api_client::config::{ConsoleOutputMode, VmConfig};

use crate::config::ConfigError;
use crate::sandbox::{Reach, Reachable};

/// Every path that building, running and rebooting the machine takes, and
/// those that the client adds.
pub(super) fn reachable(config: &VmConfig) -> Result<Vec<Reachable>, ConfigError> {
    let mut paths = Paths::default();
    paths.add("/dev/urandom", Reach::Read);
    if let Some(payload) = &config.payload {
        for file in [&payload.kernel, &payload.firmware, &payload.initramfs] {
            paths.add_some(file.as_ref(), Reach::Read);
        }
    }
    for disk in config.disks.iter().flatten() {
        let reach = if disk.readonly {
            Reach::Read
        } else {
            Reach::ReadWrite
        };
        paths.add_some(disk.path.as_ref(), reach);
    }
    if config.net.as_ref().is_some_and(|net| !net.is_empty()) {
        paths.add_network();
    }
    paths.add(&config.rng.src, Reach::Read);
    for zone in config.memory.zones.iter().flatten() {
        paths.add_some(zone.file.as_ref(), Reach::ReadWrite);
    }
    if let Some(vsock) = &config.vsock {
        paths.0.push(Reachable::for_socket(&vsock.socket));
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
            ConsoleOutputMode::File => paths.add_some(file.as_ref(), Reach::ReadWrite),
            ConsoleOutputMode::Socket => {
                if let Some(socket) = socket {
                    paths.0.push(Reachable::for_socket(socket));
                }
            }
            ConsoleOutputMode::Pty => {
                paths.add("/dev/ptmx", Reach::ReadWrite);
                paths.add("/dev/pts", Reach::ReadWrite);
            }
            _ => {}
        }
    }
    for rule in config.landlock_rules.iter().flatten() {
        let reach = match rule.access.as_str() {
            "r" => Reach::Read,
            "w" => Reach::Write,
            "rw" => Reach::ReadWrite,
            _ => return Err(ConfigError::LandlockAccess(rule.access.clone())),
        };
        paths.add(&rule.path, reach);
    }
    Ok(paths.0)
}

#[derive(Default)]
struct Paths(Vec<Reachable>);

impl Paths {
    fn add(&mut self, path: impl AsRef<Path>, reach: Reach) {
        self.0.push(Reachable {
            path: path.as_ref().to_owned(),
            reach,
        });
    }

    fn add_some(&mut self, path: Option<&PathBuf>, reach: Reach) {
        if let Some(path) = path {
            self.add(path, reach);
        }
    }

    fn add_network(&mut self) {
        // The second says whether an interface has several queues; a host
        // without virtual interfaces does not have it yet.
        self.add("/dev/net/tun", Reach::ReadWrite);
        let interfaces = Path::new("/sys/devices/virtual/net");
        if interfaces.exists() {
            self.add(interfaces, Reach::Read);
        }
    }
}

#[cfg(test)]
mod tests {
    use api_client::config::{DiskConfig, LandlockConfig, PayloadConfig, VsockConfig};

    use super::*;

    fn has(paths: &[Reachable], path: &str, reach: Reach) -> bool {
        paths
            .iter()
            .any(|known| known.path == Path::new(path) && known.reach == reach)
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
        let paths = reachable(&config).unwrap();
        for (path, reach) in [
            ("/k", Reach::Read),
            ("/i", Reach::Read),
            ("/d", Reach::ReadWrite),
            ("/r", Reach::Read),
            ("/run/vm", Reach::Sockets),
            ("/dev/urandom", Reach::Read),
            (log.to_str().unwrap(), Reach::ReadWrite),
        ] {
            assert!(has(&paths, path, reach), "{path}: {paths:?}");
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
            reachable(&VmConfig {
                landlock_rules: Some(vec![LandlockConfig {
                    path: "/more".into(),
                    access: access.into(),
                }]),
                ..VmConfig::default()
            })
        };
        for (access, reach) in [
            ("r", Reach::Read),
            ("w", Reach::Write),
            ("rw", Reach::ReadWrite),
        ] {
            assert!(has(&with(access).unwrap(), "/more", reach));
        }
        assert_eq!(with("x"), Err(ConfigError::LandlockAccess("x".into())));
    }
}
