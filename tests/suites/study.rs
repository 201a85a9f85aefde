//! The boot-exit study's runs: boots Linux in several ways and relays what
//! `ch-remote exit-stats record` saw of each boot.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use instrumentation::table::Isa;
use lab::guest;
use lab::study::{CASE, CASE_EXITS, CASE_LINE, Case};
use lab::vmm::Machine;

use crate::site::Site;

/// Milliseconds between samples. The host's clock is the emulator's, so the
/// recorder's own work is small against it.
const INTERVAL: &str = "20";

/// How long the guest is watched after its first program started: long enough
/// to see whether a booted guest goes on exiting.
const AFTER_BOOT: Duration = Duration::from_secs(1);

/// Runs every case that this host can run.
pub fn run(site: &Site) -> Result<()> {
    for case in Case::ALL {
        println!("{CASE}{}", case.name());
        if case.without_nested_paging() {
            reload(site.isa(), "0")?;
        }
        let outcome = record(site, case);
        if case.without_nested_paging() {
            reload(site.isa(), "1")?;
        }
        outcome.with_context(|| format!("Case {}", case.name()))?;
    }
    Ok(())
}

fn record(site: &Site, case: Case) -> Result<()> {
    let dir = site.fresh_dir()?;
    let initramfs = dir.join("initramfs");
    guest::initramfs(&site.base_initramfs(), "read -r word\n", &initramfs)?;
    let mut machine = Machine::idle(&site.bin(), &dir)?;
    let recording = dir.join("recording.jsonl");
    let mut recorder = Command::new(site.bin().join("ch-remote"))
        .arg("--api-socket")
        .arg(machine.socket())
        .args(["exit-stats", "record", "--interval", INTERVAL, "-o"])
        .arg(&recording)
        .stdin(Stdio::null())
        .spawn()
        .context("Cannot start the recorder")?;
    let outcome = boot(site, &mut machine, case, &dir, &initramfs);
    sleep(AFTER_BOOT);
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    // One more sample, of the machine at rest.
    sleep(Duration::from_millis(200));
    let exits = machine.debugfs_exits()?;
    recorder.kill().context("Cannot end the recorder")?;
    recorder.wait().context("Cannot wait for the recorder")?;
    outcome?;
    let text = fs::read_to_string(&recording).context("Cannot read the recording")?;
    for line in text.lines() {
        println!("{CASE_LINE}{line}");
    }
    println!("{CASE_EXITS}{exits}");
    Ok(())
}

fn boot(
    site: &Site,
    machine: &mut Machine,
    case: Case,
    dir: &Path,
    initramfs: &Path,
) -> Result<()> {
    let config = format!(
        r#"{{"cpus":{{"boot_vcpus":{0},"max_vcpus":{0}}},"memory":{{"size":268435456}},
            "payload":{{"kernel":"{1}","initramfs":"{2}","cmdline":"{3}"}},
            "serial":{{"mode":"File","file":"{4}"}},"console":{{"mode":"Off"}}}}"#,
        case.vcpus(),
        site.kernel().display(),
        initramfs.display(),
        lab::study::CMDLINE,
        dir.join("serial.log").display(),
    );
    machine.must("PUT", "/api/v1/vm.create", Some(&config))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    machine.wait_for(guest::UP, site.linux_deadline())?;
    Ok(())
}

/// Loads the vendor module anew, with or without nested paging.
fn reload(isa: Isa, nested_paging: &str) -> Result<()> {
    let (module, parameter) = match isa {
        Isa::Vmx => ("kvm-intel", "ept"),
        Isa::Svm => ("kvm-amd", "npt"),
    };
    for mut command in [
        words("rmmod", &[&module.replace('-', "_")]),
        words(
            "insmod",
            &[
                &format!("/lab/modules/{module}.ko"),
                &format!("{parameter}={nested_paging}"),
            ],
        ),
    ] {
        let status = command.status().context("Cannot change modules")?;
        ensure!(status.success(), "{command:?} failed");
    }
    Ok(())
}

fn words(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command
}
