//! A machine that is saved by one process and goes on in the next.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use lab::command::{command, output};
use lab::guest::{Instruction, Program};
use lab::oracle::{ExitHistogram, same_exits};
use lab::vmm::Machine;
use serde_json::{Value, json};

use crate::shell::Guest;
use crate::site::Site;
use crate::unrest::{self, Tap};
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "snapshot",
    applies: |site| site.is_patched() && !site.is_shared(),
    trials: trials![exits_are_counted_on_to_the_exit_in_the_next_process],
};

/// With all devices, where that is quick.
pub const LINUX: Suite = Suite {
    name: "snapshot",
    applies: |site| site.is_patched() && site.boots_quickly() && !site.is_shared(),
    trials: trials![
        linux_goes_on_from_a_snapshot_in_every_way,
        what_cannot_be_saved_or_restored_is_refused,
        damaged_snapshots_end_no_vmm,
    ],
};

const TAP: Tap = Tap {
    name: "snap0",
    host: "192.168.83.1",
    guest: "192.168.83.2",
    host_mac: "02:aa:bb:cc:dd:83",
};
/// By how much the guest's wall clock may be off.
const CLOCK: Duration = Duration::from_secs(3);

/// vCPUs of the Linux guest, and bytes that the state of each may have at most.
const VCPUS: u64 = 2;
const STATE_OF_A_VCPU: u64 = 64 << 10;

fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

/// Pauses a VM and saves it to a new folder.
fn save(machine: &Machine, folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let said = machine.ch_remote_text(&["snapshot", &url(folder)])?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

fn exits_are_counted_on_to_the_exit_in_the_next_process(site: &Site) -> Result<()> {
    const ASKED: u32 = 20_000;
    let image = Program::new()
        .repeat(Instruction::Out(0x3f8), 1)
        .repeat(Instruction::Cpuid, ASKED)
        .repeat(Instruction::Out(0x3f8), 1)
        .halt();
    let histogram = ExitHistogram::start()?;
    let mut machine = site.boot_tiny(&image)?;
    machine.wait_for_bytes(1, site.tiny_deadline())?;
    let dir = machine.dir().to_owned();
    let (mut before, mut moves) = (machine.stats()?, 0);
    // Some of the way in each of three processes.
    for name in ["first", "second"] {
        save(&machine, &dir.join(name))?;
        let saved = machine.stats()?;
        ensure!(saved.at_least(&before), "{:?}", saved.totals);
        machine.shut_down()?;
        let restore = format!("source_url={}", url(&dir.join(name)));
        machine = Machine::restore(&site.bin(), &dir, &restore)?;
        let restored = machine.stats()?;
        ensure!(
            restored == saved,
            "Saved {:?}, restored {:?}",
            saved.totals,
            restored.totals
        );
        machine.must("PUT", "/api/v1/vm.resume", None)?;
        (before, moves) = (saved, moves + 1);
    }
    machine.wait_until_silent(site.tiny_deadline())?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let stats = machine.stats()?;
    let counted = stats.exits(site.numbers().cpuid);
    ensure!(
        counted == u64::from(ASKED),
        "{ASKED} executed in {} processes, {counted} counted",
        moves + 1
    );
    same_exits(&stats.occurred(), &histogram.of_all()?)
}

fn boot(site: &Site) -> Result<Guest> {
    unrest::boot(
        site,
        &TAP,
        16 << 20,
        |_| json!({"balloon": {"size": 16 << 20}, "watchdog": true}),
    )
}

/// Has the guest go on in a new process.
fn restore(site: &Site, dir: &Path, folder: &Path, how: Value) -> Result<Guest> {
    let machine = Machine::idle(&site.bin(), dir)?;
    let mut body = json!({"source_url": url(folder)});
    if let (Some(body), Value::Object(how)) = (body.as_object_mut(), how) {
        body.extend(how);
    }
    machine.must("PUT", "/api/v1/vm.restore", Some(&body.to_string()))?;
    let shell = UnixStream::connect(dir.join("serial.sock"))?;
    Ok(Guest::from_parts(machine, dir.to_owned(), shell))
}

fn linux_goes_on_from_a_snapshot_in_every_way(site: &Site) -> Result<()> {
    let histogram = ExitHistogram::start()?;
    let mut guest = boot(site)?;
    guest.run(
        "dd if=/dev/urandom of=/t/data bs=64k count=16 2>/dev/null; md5sum </t/data >/t/sum",
    )?;
    guest.run("dd if=/t/data of=/dev/vda bs=64k oflag=direct 2>/dev/null")?;
    guest.run("(i=0; while :; do i=$((i + 1)); echo $i >/t/i; done) &")?;
    let dir = guest.dir.clone();
    let folder = dir.join("saved");
    save(&guest.machine, &folder)?;
    let saved = guest.machine.stats()?;
    let memory = fs::metadata(folder.join("memory-ranges"))?;
    ensure!(
        memory.len() == 256 << 20 && memory.blocks() * 512 < 160 << 20,
        "{} bytes of memory take {}",
        memory.len(),
        memory.blocks() * 512
    );
    let ours: Vec<PathBuf> = fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    for file in &ours {
        let mode = fs::metadata(file)?.mode();
        ensure!(mode & 0o077 == 0, "{} is {mode:o}", file.display());
    }
    ensure!(ours.len() == 3, "{ours:?}");
    // The VMM's limit for reading counts on this, with 4,096 vCPUs.
    let state = fs::metadata(folder.join("state.json"))?.len();
    ensure!(
        state < VCPUS * STATE_OF_A_VCPU,
        "The state has {state} bytes"
    );
    // Its image has one writer.
    let second = Machine::idle(&site.bin(), &site.fresh_dir()?)?;
    let answer = second.api(
        "PUT",
        "/api/v1/vm.restore",
        Some(&json!({"source_url": url(&folder)}).to_string()),
    )?;
    ensure!(answer.status != 204, "Two VMs have one disk");
    ensure!(second.api("GET", "/api/v1/vm.info", None)?.status == 404);
    second.shut_down()?;
    guest.machine.shut_down()?;

    for (how, resumed) in [
        (json!({}), false),
        (
            json!({"memory_restore_mode": "OnDemand", "resume": true}),
            true,
        ),
        (json!({"prefault": true, "resume": true}), true),
    ] {
        let what = how.to_string();
        let mut guest = restore(site, &dir, &folder, how)?;
        let info = guest.machine.must("GET", "/api/v1/vm.info", None)?.json()?;
        let expected = if resumed { "Running" } else { "Paused" };
        ensure!(info["state"] == expected, "{what}: {info}");
        if !resumed {
            let restored = guest.machine.stats()?;
            ensure!(restored == saved, "{what}: {:?}", restored.totals);
            guest.machine.must("PUT", "/api/v1/vm.resume", None)?;
        }
        works(&mut guest).context(what)?;
        guest.machine.must("PUT", "/api/v1/vm.pause", None)?;
        let stats = guest.machine.stats()?;
        ensure!(stats.at_least(&saved), "{:?}", stats.totals);
        if !resumed {
            // Of the other ways the tracepoint has counted more than one life.
            same_exits(&stats.occurred(), &histogram.of_all()?)?;
        }
        guest.machine.shut_down()?;
    }
    Ok(())
}

/// The guest, its devices and its clocks are what they were.
fn works(guest: &mut Guest) -> Result<()> {
    let seconds: u64 = guest.run("date +%s")?.parse()?;
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let now = SystemTime::now();
    let off = now
        .duration_since(then)
        .or_else(|_| then.duration_since(now))?;
    ensure!(off < CLOCK, "The guest's wall clock is off by {off:?}");
    guest.run("[ \"$(md5sum </t/data)\" = \"$(cat /t/sum)\" ]")?;
    let read = "dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | md5sum";
    guest.run(&format!("[ \"$({read})\" = \"$(cat /t/sum)\" ]"))?;
    let count = guest.run("cat /t/i")?;
    guest.run_until(
        &format!("[ $(cat /t/i) -gt {count} ] && echo on || true"),
        "on",
    )?;
    guest.run(&format!("ping -c 1 -W 10 {} >/dev/null", TAP.host))?;
    let complaints = guest.run("dmesg | grep -E 'I/O error|lockup|stall|unstable|hung' || true")?;
    ensure!(
        complaints.is_empty(),
        "The guest's kernel says:\n{complaints}"
    );
    Ok(())
}

/// The status and the messages of an answer that is a refusal.
fn refused(machine: &Machine, path: &str, body: &Value) -> Result<(u16, String)> {
    let answer = machine.api("PUT", path, Some(&body.to_string()))?;
    ensure!(answer.status != 204, "{path} {body} is accepted");
    Ok((answer.status, answer.errors()?.join(": ")))
}

fn what_cannot_be_saved_or_restored_is_refused(site: &Site) -> Result<()> {
    let guest = boot(site)?;
    let folder = guest.dir.join("saved");
    fs::create_dir(&folder)?;
    let (machine, place) = (&guest.machine, json!({"destination_url": url(&folder)}));
    let snapshot = "/api/v1/vm.snapshot";
    let (status, text) = refused(machine, snapshot, &place)?;
    ensure!(status == 500 && text.contains("pause it first"), "{text}");
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    for (bad, why) in [
        ("/tmp", "is not the URL"),
        ("file:///no/such/folder", "is not a directory"),
    ] {
        let (status, text) = refused(machine, snapshot, &json!({"destination_url": bad}))?;
        ensure!(status == 400 && text.contains(why), "{status} {text}");
    }
    machine.must("PUT", snapshot, Some(&place.to_string()))?;
    let (status, text) = refused(machine, snapshot, &place)?;
    ensure!(
        status == 409 && text.contains("already contains a snapshot"),
        "{text}"
    );
    let (status, text) = refused(
        machine,
        "/api/v1/vm.restore",
        &json!({"source_url": url(&folder)}),
    )?;
    ensure!(status == 409 || text.contains("already"), "{status} {text}");

    // A file system without room: nothing stays that could be taken for a snapshot.
    let full = guest.dir.join("full");
    fs::create_dir(&full)?;
    let how = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"].map(Path::new);
    let arguments = how.into_iter().chain([full.as_path()]);
    output(&mut command("mount", arguments))?;
    let (status, text) = refused(machine, snapshot, &json!({"destination_url": url(&full)}))?;
    let left = fs::read_dir(&full)?.count();
    output(&mut command("umount", [&full]))?;
    ensure!(
        status == 500 && text.contains("No space left") && left == 0,
        "{status} {text}, {left} files"
    );
    // The guest goes on as after a pause.
    machine.must("PUT", "/api/v1/vm.resume", None)?;
    let mut guest = guest;
    guest.run("echo here").map(drop)
}

fn damaged_snapshots_end_no_vmm(site: &Site) -> Result<()> {
    /// Bytes of the state between two that are damaged.
    const STEP: usize = 2003;
    let image = Program::new().repeat(Instruction::Cpuid, 10).halt();
    let machine = site.boot_tiny(&image)?;
    machine.wait_until_silent(site.tiny_deadline())?;
    let dir = machine.dir().to_owned();
    let folder = dir.join("saved");
    save(&machine, &folder)?;
    machine.shut_down()?;
    let (state, memory) = (folder.join("state.json"), folder.join("memory-ranges"));
    let machine = Machine::idle(&site.bin(), &dir)?;
    let body = json!({"source_url": url(&folder)});
    let whole = fs::read(&state)?;
    let (mut bad, mut fine) = (0, 0);
    for at in (0..whole.len()).step_by(if site.is_long() { 1 } else { STEP }) {
        for change in [b'0', b'9', b'"', 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = change;
            fs::write(&state, damaged)?;
            let answer = machine.api("PUT", "/api/v1/vm.restore", Some(&body.to_string()))?;
            if answer.status == 204 {
                fine += 1;
                machine.must("PUT", "/api/v1/vm.delete", None)?;
            } else {
                bad += 1;
                let text = answer.errors()?.join(": ");
                ensure!(
                    text.len() < 1000 && !text.contains('\n'),
                    "Byte {at}: {text}"
                );
            }
            let info = machine.api("GET", "/api/v1/vm.info", None)?;
            ensure!(info.status == 404, "Byte {at} leaves a VM");
        }
    }
    ensure!(bad > 10 && fine > 0, "{bad} refused, {fine} restored");
    fs::write(&state, &whole[..whole.len() / 2])?;
    let (_, text) = refused(&machine, "/api/v1/vm.restore", &body)?;
    ensure!(text.contains("state.json is damaged"), "{text}");
    fs::write(&state, &whole)?;
    let length = fs::metadata(&memory)?.len();
    fs::File::options()
        .write(true)
        .open(&memory)?
        .set_len(length - 4096)?;
    let (_, text) = refused(&machine, "/api/v1/vm.restore", &body)?;
    ensure!(text.contains("memory-ranges"), "{text}");
    fs::File::options()
        .write(true)
        .open(&memory)?
        .set_len(length)?;
    machine.must("PUT", "/api/v1/vm.restore", Some(&body.to_string()))?;
    let log = machine.stderr();
    ensure!(!log.contains("panicked"), "{log}");
    let finished = machine.shut_down()?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    Ok(())
}
