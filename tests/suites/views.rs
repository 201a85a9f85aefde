//! The views of the statistics that a single VM, switched by hand, does not try:
//! a VMM that hangs, recordings that end, histograms, the socket that only reads.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::guest::{Instruction, Program};
use lab::vmm::{Machine, request};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "views",
    applies: |site| site.is_patched() && site.boots_quickly(),
    trials: trials![
        vmm_that_is_stopped_is_given_up_and_goes_on_afterwards,
        recording_waits_for_the_vmm_and_ends_with_the_reboot,
        recording_ends_well_at_an_interrupt,
        histograms_hold_each_exit_of_a_vm_that_keeps_them,
        statistics_socket_reads_what_the_api_does_and_changes_nothing,
    ],
};

const CPUIDS: u32 = 1234;
/// How long a client may take that is told to wait for a second: not as long as one that
/// is told nothing, which waits for ten.
const GIVEN_UP: Duration = Duration::from_secs(9);
/// How long a program may take to do what it has been told.
const STEP: Duration = Duration::from_secs(30);

fn guest(path: &Path) -> Result<()> {
    let program = Program::new()
        .repeat(Instruction::Cpuid, CPUIDS)
        .repeat(Instruction::Out(0x3f8), 1);
    fs::write(path, program.halt()).context("Cannot write the guest")
}

/// An idle VMM, and the configuration of a guest that halts after some CPUIDs.
fn idle(site: &Site, args: &[String]) -> Result<(Machine, serde_json::Value)> {
    let dir = site.fresh_dir()?;
    let machine = Machine::idle_with(&site.bin(), &dir, args)?;
    Ok((machine, config(&dir)?))
}

fn config(dir: &Path) -> Result<serde_json::Value> {
    guest(&dir.join("guest.elf"))?;
    Ok(json!({
        "payload": {"kernel": dir.join("guest.elf")},
        "memory": {"size": 64 << 20},
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Off"},
    }))
}

fn boot(site: &Site, machine: &mut Machine, config: &serde_json::Value) -> Result<()> {
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    machine.wait_for_bytes(1, site.tiny_deadline())?;
    machine.wait_until_silent(site.tiny_deadline())
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("No process")?;
    kill_process(pid, signal).context("Cannot send a signal")
}

fn vmm_that_is_stopped_is_given_up_and_goes_on_afterwards(site: &Site) -> Result<()> {
    let (mut machine, config) = idle(site, &[])?;
    boot(site, &mut machine, &config)?;
    send(machine.pid(), Signal::STOP)?;
    let asked = [
        &["--timeout", "1", "info"][..],
        &["--timeout", "1", "exit-stats"],
        &["--timeout", "1", "pause"],
    ]
    .map(|args| {
        let start = Instant::now();
        (args, machine.ch_remote(args), start.elapsed())
    });
    send(machine.pid(), Signal::CONT)?;
    for (args, answer, took) in asked {
        let answer = answer?;
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure!(
            answer.status.code() == Some(1) && took < GIVEN_UP,
            "{args:?}: {}, after {took:?}: {said}",
            answer.status
        );
        ensure!(said.contains("answer"), "{args:?}: {said}");
    }
    machine.ch_remote_text(&["--timeout", "20", "exit-stats"])?;
    let finished = machine.shut_down()?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    Ok(())
}

/// A recording under way, and what it says.
struct Record {
    child: Child,
    said: std::path::PathBuf,
    output: std::path::PathBuf,
}

impl Drop for Record {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Record {
    fn start(site: &Site, socket: &Path, dir: &Path, more: &[&str]) -> Result<Record> {
        let (said, output) = (dir.join("said"), dir.join("recording.jsonl"));
        let child = Command::new(site.bin().join("ch-remote"))
            .arg("--api-socket")
            .arg(socket)
            .args(["exit-stats", "record", "--interval", "20", "--output"])
            .arg(&output)
            .args(more)
            .stdin(Stdio::null())
            .stderr(fs::File::create(&said)?)
            .spawn()
            .context("Cannot start ch-remote")?;
        Ok(Record {
            child,
            said,
            output,
        })
    }

    fn wait_for(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + STEP;
        loop {
            let said = fs::read_to_string(&self.said)?;
            if said.contains(text) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "It does not say {text}: {said}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Samples that it has taken.
    fn samples(&self) -> usize {
        // The first line is about the recording.
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        text.lines().count().saturating_sub(1)
    }

    fn wait_for_samples(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + STEP;
        while self.samples() < count {
            ensure!(Instant::now() < deadline, "{} samples", self.samples());
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its status, and all that it said.
    fn end(mut self) -> Result<(Option<i32>, String)> {
        let deadline = Instant::now() + STEP;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "The recording does not end");
            sleep(Duration::from_millis(20));
        };
        Ok((status.code(), fs::read_to_string(&self.said)?))
    }
}

fn recording_waits_for_the_vmm_and_ends_with_the_reboot(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let record = Record::start(site, &dir.join("api.sock"), &dir, &["--wait"])?;
    record.wait_for("Waiting for a VMM")?;
    ensure!(!record.output.exists(), "It wrote a file without a VMM");
    let mut machine = Machine::idle(&site.bin(), &dir)?;
    record.wait_for("waiting for its boot")?;
    boot(site, &mut machine, &config(&dir)?)?;
    record.wait_for_samples(2)?;
    let page = dir.join("page.html");
    machine.must("PUT", "/api/v1/vm.reboot", None)?;
    let output = record.output.clone();
    let (status, said) = record.end()?;
    // It may look in the moment between the two boots.
    let named = ["The VM rebooted", "The VM ended"].map(|why| said.contains(why));
    ensure!(
        status == Some(1) && named.contains(&true),
        "{status:?}: {said}"
    );
    // What it has is whole.
    let paths = [&output, &page].map(|path| path.display().to_string());
    machine.ch_remote_text(&["exit-stats", "report", &paths[0], "--output", &paths[1]])?;
    ensure!(
        fs::read_to_string(&page)?.contains("CPUID"),
        "The report has no CPUID"
    );
    Ok(())
}

fn recording_ends_well_at_an_interrupt(site: &Site) -> Result<()> {
    let (mut machine, config) = idle(site, &[])?;
    boot(site, &mut machine, &config)?;
    let dir = site.fresh_dir()?;
    let record = Record::start(site, &machine.socket(), &dir, &[])?;
    record.wait_for_samples(2)?;
    send(record.child.id(), Signal::INT)?;
    let (status, said) = record.end()?;
    ensure!(
        status == Some(0) && said.contains("Ended by a signal"),
        "{status:?}: {said}"
    );
    Ok(())
}

fn histograms_hold_each_exit_of_a_vm_that_keeps_them(site: &Site) -> Result<()> {
    let (mut machine, mut config) = idle(site, &[])?;
    config["exit_stats"] = json!({"guest_leaves": true, "latency": true});
    boot(site, &mut machine, &config)?;
    let stats = machine.must("GET", "/api/v1/vm.exit-stats", None)?.json()?;
    let latency = &stats["latency"];
    ensure!(latency["on"] == true, "{latency}");
    let reasons = latency["reasons"].as_array().context("No reasons")?;
    let mut shown = 0;
    for row in stats["reasons"].as_array().context("No reasons")? {
        let exits = row["exits"].as_u64().unwrap_or_default();
        let histogram = reasons
            .iter()
            .find(|found| found["number"] == row["number"]);
        let sum: u64 = histogram
            .and_then(|found| found["buckets"].as_array())
            .into_iter()
            .flatten()
            .filter_map(|bucket| bucket["exits"].as_u64())
            .sum();
        // The halt that the guest is in has not come to its end.
        let open = u64::from(row["number"] == site.numbers().hlt);
        ensure!(sum + open == exits, "{row}: {histogram:?}");
        shown += usize::from(exits > 0);
    }
    ensure!(shown > 1, "Nothing occurred: {stats}");
    let cpuid = site.numbers().cpuid;
    let row = reasons.iter().find(|found| found["number"] == cpuid);
    let row = row.context("No histogram of CPUID")?;
    let (least, most) = (row["min_ns"].as_u64(), row["max_ns"].as_u64());
    ensure!(
        least.is_some() && most.is_none_or(|most| Some(most) > least),
        "{row}"
    );
    // The same in the other views.
    let table = machine.ch_remote_text(&["exit-stats"])?;
    ensure!(table.contains("Min") && table.contains("Max"), "{table}");
    let metrics = machine.must("GET", "/metrics", None)?.body;
    ensure!(
        metrics.contains("kvm_exit_latency_seconds_bucket"),
        "{metrics}"
    );
    Ok(())
}

fn statistics_socket_reads_what_the_api_does_and_changes_nothing(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let socket = dir.join("stats.sock");
    let option = format!("socket={},mode=0660", socket.display());
    let args = ["--exit-stats".to_owned(), option];
    let (mut machine, config) = idle(site, &args)?;
    let mode = fs::metadata(&socket)?.permissions().mode() & 0o777;
    ensure!(mode == 0o660, "Its mode is {mode:o}");
    boot(site, &mut machine, &config)?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    for path in ["/api/v1/vm.exit-stats", "/exit-stats?reason=0"] {
        let [ours, its] = [&machine.socket(), &socket]
            .map(|socket| request(socket, "GET", path, None).and_then(|answer| answer.json()));
        let (mut ours, mut its) = (ours?, its?);
        for reading in [&mut ours, &mut its] {
            for time in ["unix_us", "monotonic_us"] {
                reading[time] = json!(null);
            }
        }
        ensure!(ours == its, "{path}: {ours} and {its}");
    }
    for (method, path) in [
        ("GET", "/api/v1/vm.info"),
        ("PUT", "/api/v1/vm.resume"),
        ("PUT", "/api/v1/vm.delete"),
        ("PUT", "/api/v1/vmm.shutdown"),
    ] {
        let answer = request(&socket, method, path, None)?;
        ensure!(answer.status == 403, "{path}: {}", answer.status);
    }
    let info = machine.must("GET", "/api/v1/vm.info", None)?.json()?;
    ensure!(info["state"] == "Paused", "{info}");
    let table = Command::new(site.bin().join("ch-remote"))
        .arg("--api-socket")
        .arg(&socket)
        .arg("exit-stats")
        .output()?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    ensure!(
        table.contains("CPUID") && table.contains("1,234"),
        "{table}"
    );
    let finished = machine.shut_down()?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    ensure!(!socket.exists(), "The socket is still there");
    Ok(())
}
