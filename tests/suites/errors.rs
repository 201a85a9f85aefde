//! What goes wrong is said once, clearly, and leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::guest::Program;
use lab::vmm::Machine;

use crate::site::{Site, skip};
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "errors",
    applies: |_| true,
    trials: trials![
        missing_kernel_is_named,
        file_that_is_no_kernel_is_refused,
        missing_initramfs_is_named,
        socket_path_in_no_folder_is_refused,
        socket_in_use_is_refused_and_left_to_its_owner,
        socket_of_a_dead_vmm_is_taken_over,
        unknown_option_is_refused,
        machine_without_kvm_is_told_so,
        client_without_server_is_told_so,
        server_survives_a_kernel_that_is_missing,
        guest_that_kvm_gives_up_on_is_located,
    ],
};

/// How a command that should fail did so.
struct Failure {
    code: Option<i32>,
    stderr: String,
}

fn fails(program: &Path, args: &[&str]) -> Result<Failure> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Cannot start {}", program.display()))?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            anyhow::bail!("{args:?} should have failed, but runs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output()?;
    Ok(Failure {
        code: output.status.code(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

impl Failure {
    /// A clear message: exit status 1, what it is about is named, and neither
    /// a panic nor a flood of lines.
    fn names(&self, what: &str) -> Result<()> {
        ensure!(
            self.code == Some(1),
            "Exit status {:?}: {}",
            self.code,
            self.stderr
        );
        ensure!(
            self.stderr.contains(what),
            "{what:?} is not in: {}",
            self.stderr
        );
        ensure!(!self.stderr.contains("panicked"), "{}", self.stderr);
        ensure!(
            self.stderr.trim().lines().count() <= 6,
            "Too long:\n{}",
            self.stderr
        );
        Ok(())
    }
}

/// The VMM with a socket of its own and these arguments.
fn vmm_fails(site: &Site, args: &[&str]) -> Result<Failure> {
    let dir = site.fresh_dir()?;
    let socket = dir.join("api.sock");
    let socket_arg = socket.display().to_string();
    let mut all = vec!["--api-socket", &socket_arg];
    all.extend_from_slice(args);
    let failure = fails(&site.bin().join("cloud-hypervisor"), &all)?;
    let left: Vec<PathBuf> = fs::read_dir(&dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    // The lock beside a socket may stay: removing it would race with the next owner.
    let left: Vec<_> = left
        .iter()
        .filter(|path| path.extension().is_none_or(|suffix| suffix != "lock"))
        .collect();
    ensure!(left.is_empty(), "Left behind: {left:?}");
    Ok(failure)
}

fn missing_kernel_is_named(site: &Site) -> Result<()> {
    vmm_fails(site, &["--kernel", "/no/such/kernel"])?.names("/no/such/kernel")
}

fn file_that_is_no_kernel_is_refused(site: &Site) -> Result<()> {
    vmm_fails(site, &["--kernel", "/proc/version"])?.names("/proc/version")
}

fn missing_initramfs_is_named(site: &Site) -> Result<()> {
    let kernel = site.kernel().display().to_string();
    vmm_fails(
        site,
        &["--kernel", &kernel, "--initramfs", "/no/such/initramfs"],
    )?
    .names("/no/such/initramfs")
}

fn socket_path_in_no_folder_is_refused(site: &Site) -> Result<()> {
    let args = ["--api-socket", "/no/such/folder/api.sock"];
    fails(&site.bin().join("cloud-hypervisor"), &args)?.names("/no/such/folder/api.sock")
}

fn socket_in_use_is_refused_and_left_to_its_owner(site: &Site) -> Result<()> {
    let owner = Machine::idle(&site.bin(), &site.fresh_dir()?)?;
    let socket = owner.socket().display().to_string();
    fails(
        &site.bin().join("cloud-hypervisor"),
        &["--api-socket", &socket],
    )?
    .names(&socket)?;
    owner.must("GET", "/api/v1/vmm.ping", None)?;
    Ok(())
}

fn socket_of_a_dead_vmm_is_taken_over(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    Machine::idle(&site.bin(), &dir)?.kill()?;
    ensure!(
        dir.join("api.sock").exists(),
        "A killed VMM cannot have removed its socket"
    );
    Machine::idle(&site.bin(), &dir)?.must("GET", "/api/v1/vmm.ping", None)?;
    Ok(())
}

fn unknown_option_is_refused(site: &Site) -> Result<()> {
    let kernel = site.kernel().display().to_string();
    let args = ["--kernel", &kernel, "--cpus", "boot=1,nonsense=2"];
    let failure = vmm_fails(site, &args)?;
    ensure!(failure.code.is_some_and(|code| code != 0), "Accepted");
    ensure!(failure.stderr.contains("nonsense"), "{}", failure.stderr);
    Ok(())
}

/// Hides a file as long as it lives.
struct Hidden(&'static str);

impl Hidden {
    fn away(&self) -> String {
        format!("{}.away", self.0)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = fs::rename(self.away(), self.0);
    }
}

fn machine_without_kvm_is_told_so(site: &Site) -> Result<()> {
    if site.is_shared() {
        return skip("/dev/kvm of a machine that others use stays where it is");
    }
    let hidden = Hidden("/dev/kvm");
    fs::rename(hidden.0, hidden.away()).context("Cannot hide /dev/kvm")?;
    let kernel = site.kernel().display().to_string();
    vmm_fails(site, &["--kernel", &kernel])?.names("/dev/kvm")
}

fn client_without_server_is_told_so(site: &Site) -> Result<()> {
    let socket = site.fresh_dir()?.join("nobody.sock").display().to_string();
    for command in ["ping", "exit-stats"] {
        fails(
            &site.bin().join("ch-remote"),
            &["--api-socket", &socket, command],
        )?
        .names("nobody.sock")?;
    }
    Ok(())
}

fn server_survives_a_kernel_that_is_missing(site: &Site) -> Result<()> {
    let machine = Machine::idle(&site.bin(), &site.fresh_dir()?)?;
    let config = r#"{"payload": {"kernel": "/no/such/kernel"}}"#;
    machine.must("PUT", "/api/v1/vm.create", Some(config))?;
    let response = machine.api("PUT", "/api/v1/vm.boot", None)?;
    ensure!(response.status >= 400, "It booted: {}", response.status);
    ensure!(
        response.body.contains("/no/such/kernel"),
        "{}",
        response.body
    );
    // Nothing of the failed boot is in the way of the next one.
    machine.must("PUT", "/api/v1/vm.delete", None)?;
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    fs::write(&kernel, Program::new().halt())?;
    let config = serde_json::json!({"payload": {"kernel": kernel}}).to_string();
    machine.must("PUT", "/api/v1/vm.create", Some(&config))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    Ok(())
}

/// Device registers are no code, and those that nobody has least of all.
fn guest_that_kvm_gives_up_on_is_located(site: &Site) -> Result<()> {
    let guest = site.fresh_dir()?.join("guest.elf");
    fs::write(&guest, Program::new().get_lost(0xd000_0000))?;
    vmm_fails(site, &["--kernel", &guest.display().to_string()])?.names(
        "vCPU 0: KVM cannot go on: it cannot emulate an instruction, \
         instruction pointer 0xd0000000",
    )
}
