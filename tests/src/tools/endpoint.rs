//! A VMM's API over a machine that is made up.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::command::{bound_command, command, visible};
use crate::host::Isa;
use crate::tree::Tree;

/// Which programs are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Built quickly.
    Debug,
    /// Fast.
    Release,
}

/// Whether the figures grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// By the same amount at each reading.
    Moving,
    /// Never.
    Still,
}

/// A running server; ends with the value.
#[derive(Debug)]
pub struct Endpoint {
    child: Child,
    socket: PathBuf,
}

impl Endpoint {
    /// Starts one that listens at `socket`.
    pub fn start(
        tree: &Tree,
        profile: Profile,
        socket: &Path,
        isa: Isa,
        vcpus: u32,
        pace: Pace,
    ) -> Result<Self> {
        let program = programs(tree, profile).join("examples/exit_stats_server");
        let pace = match pace {
            Pace::Moving => "moving",
            Pace::Still => "still",
        };
        let child = bound_command(&program.to_string_lossy(), [socket.as_os_str()])
            .args([isa.as_str(), &vcpus.to_string(), pace])
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("Cannot start {}", program.display()))?;
        let endpoint = Endpoint {
            child,
            socket: socket.to_owned(),
        };
        wait_until("the server listens", || UnixStream::connect(socket).is_ok())?;
        Ok(endpoint)
    }

    /// Time that its threads spent on a processor.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        // Fields 14 and 15, in hundredths of a second.
        let ticks: u64 = after_name
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Killed, it could not take its socket away.
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Builds what the trials start.
pub fn build(tree: &Tree) -> Result<()> {
    let args = [
        "build",
        "--quiet",
        "-p",
        "vmm",
        "--example",
        "exit_stats_server",
        "--example",
        "api_without_kvm",
        "-p",
        "api-client",
        "--bin",
        "ch-remote",
        "-p",
        "unmodified-client",
        "--bin",
        "unmodified-client",
    ];
    visible(command("cargo", args).current_dir(tree.root()))
}

/// Builds the server and the VMM, fast.
pub fn build_release(tree: &Tree) -> Result<()> {
    let args = [
        "build",
        "--quiet",
        "--release",
        "-p",
        "vmm",
        "--example",
        "exit_stats_server",
        "--bin",
        "cloud-hypervisor",
    ];
    visible(command("cargo", args).current_dir(tree.root()))
}

/// Where the programs of this tree are.
pub fn programs(tree: &Tree, profile: Profile) -> PathBuf {
    tree.root().join(match profile {
        Profile::Debug => "target/debug",
        Profile::Release => "target/release",
    })
}

/// The `ch-remote` of this tree.
pub fn ch_remote(tree: &Tree) -> PathBuf {
    programs(tree, Profile::Debug).join("ch-remote")
}

/// Waits for something that does not tell by itself.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        ensure!(Instant::now() < deadline, "Waited in vain: {what}");
        sleep(Duration::from_millis(50));
    }
    Ok(())
}
