//! The boot-exit study's runs: boots Linux in several ways and relays what
//! `ch-remote exit-stats record` saw of each boot, and the same of QEMU's.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use instrumentation::snapshot::{ExitSnapshot, Host, Query, ReasonArrays, VcpuInput, VcpuSample};
use instrumentation::table::{ExitReason, Isa, STATS_SLOTS};
use lab::guest;
use lab::oracle::DebugfsTable;
use lab::peer::{Peer, PeerSpec};
use lab::study::{CASE, CASE_EXITS, CASE_LINE, Case};
use lab::vmm::Machine;
use serde_json::json;

use crate::site::Site;

/// Milliseconds between samples. The host's clock is the emulator's, so the
/// recorder's own work is small against it.
const INTERVAL: u64 = 20;

/// How long the guest is watched after its first program started: long enough
/// to see whether a booted guest goes on exiting.
const AFTER_BOOT: Duration = Duration::from_secs(1);

/// Runs the cases of these names.
pub fn run(site: &Site, names: &[String]) -> Result<()> {
    for name in names {
        let case = Case::from_name(name).with_context(|| format!("No case is called {name}"))?;
        println!("{CASE}{}", case.name());
        if case.without_nested_paging() {
            reload(site.isa(), "0")?;
        }
        let outcome = match case {
            Case::Qemu => record_in_qemu(site),
            _ => record(site, case),
        };
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
        .args([
            "exit-stats",
            "record",
            "--interval",
            &INTERVAL.to_string(),
            "-o",
        ])
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

/// Records a boot in QEMU as `ch-remote` does one in our VMM, from the table in
/// debugfs.
fn record_in_qemu(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let initramfs = dir.join("initramfs");
    guest::initramfs(&site.base_initramfs(), "read -r word\n", &initramfs)?;
    let spec = PeerSpec {
        kernel: &site.kernel(),
        linux: Some((&initramfs, lab::study::CMDLINE)),
        cpu: "host",
        vcpus: Case::Qemu.vcpus(),
    };
    let mut peer = Peer::ready(&dir, &spec)?;
    let interval = Duration::from_millis(INTERVAL);
    // The form of `ch-remote exit-stats record`.
    let header = json!({
        "format": "exit-stats-recording",
        "version": 1,
        "vm": "qemu",
        "interval_ms": INTERVAL,
    });
    let mut recording = vec![header.to_string()];
    let mut last: Option<ExitSnapshot> = None;
    let start = Instant::now();
    let mut up = None;
    let mut next = start;
    let mut sample = |peer: &Peer| -> Result<u64> {
        let table = DebugfsTable::of_process(peer.pid())?;
        let reading = snapshot(site, &table);
        let since = match &last {
            Some(last) => reading.since(last).map_err(|error| anyhow!("{error}"))?,
            None => reading.clone(),
        };
        let moved = Query {
            nonzero: true,
            ..Query::default()
        };
        let delta = since.narrow(&moved).map_err(|error| anyhow!("{error}"))?;
        let ms = start.elapsed().as_millis() as u64;
        recording.push(json!({"ms": ms, "delta": delta}).to_string());
        last = Some(reading);
        Ok(table.own)
    };
    peer.go_on()?;
    while up.is_none_or(|up: Instant| up.elapsed() < AFTER_BOOT) {
        sample(&peer)?;
        if up.is_none() && peer.serial().text().contains(guest::UP) {
            up = Some(Instant::now());
        }
        ensure!(
            start.elapsed() < site.linux_deadline(),
            "The guest does not boot; {}\n{}",
            peer.stderr(),
            peer.serial().tail()
        );
        next = (next + interval).max(Instant::now());
        sleep(next.saturating_duration_since(Instant::now()));
    }
    peer.stop()?;
    let exits = sample(&peer)?;
    for line in recording {
        println!("{CASE_LINE}{line}");
    }
    println!("{CASE_EXITS}{exits}");
    Ok(())
}

/// The table as a reading of one vCPU.
fn snapshot(site: &Site, table: &DebugfsTable) -> ExitSnapshot {
    let mut columns = [(); 5].map(|()| vec![0; STATS_SLOTS]);
    for row in &table.rows {
        let slot = row
            .number
            .and_then(|number| site.table().slot(ExitReason(number)))
            .unwrap_or(site.table().other_slot());
        for (column, figure) in columns.iter_mut().zip(row.figures) {
            column[slot.0] += figure;
        }
    }
    let [
        exits,
        cycles,
        blocked_cycles,
        userspace_cycles,
        preempted_cycles,
    ] = columns;
    let host = Host {
        isa: Ok(site.isa()),
        tsc_khz: table.tsc_khz as u32,
    };
    let input = VcpuInput {
        id: 0,
        sample: VcpuSample {
            exits: table.own,
            guest_cycles: Some(table.guest),
            arrays: Some(ReasonArrays {
                exits,
                cycles,
                blocked_cycles,
                userspace_cycles,
                preempted_cycles,
            }),
        },
        user_exits: Vec::new(),
    };
    ExitSnapshot::from_samples(&host, &[], &[input])
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
