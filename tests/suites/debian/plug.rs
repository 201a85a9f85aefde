//! Devices that come and go while the guest runs.

use std::fs::{self, File};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::oracle::own_memory;

use super::guest::{Guest, STEP_TIMEOUT, Spec, WORK};
use crate::site::Site;

/// The kernel's own announcements, a line each.
const MONITOR: &str =
    "udevadm monitor --kernel --subsystem-match=block --subsystem-match=net & sleep 1";

/// glibc's allocator keeps freed pieces for each thread, by size: for a hundred
/// rounds and more it finds sizes that it has not kept seven of yet, 600 bytes a
/// round, which would hide a small leak. Without that, a round leaves nothing.
const NOTHING_KEPT: [&str; 2] = ["env", "GLIBC_TUNABLES=glibc.malloc.tcache_count=0"];

/// Bytes that the process may have in memory beyond what it had after the first
/// rounds, however many follow: a page or two that happen to be touched.
const GROWTH: u64 = 16 << 10;

/// Names that the devices take in turn. Figures of a device outlive it, by its
/// name, so new names without end would be memory that the VMM keeps on purpose.
const NAMES: u32 = 4;

/// How long the guest's last word about a device may take.
const SETTLING: Duration = Duration::from_secs(60);

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
}

impl Holdings {
    fn of(pid: u32) -> Result<Holdings> {
        let count = |name: &str| -> Result<usize> {
            let path = format!("/proc/{pid}/{name}");
            Ok(fs::read_dir(&path)
                .with_context(|| format!("Cannot list {path}"))?
                .count())
        };
        Ok(Holdings {
            descriptors: count("fd")?,
            threads: count("task")?,
        })
    }
}

/// Waits until the guest's kernel has announced all of these.
fn announced(guest: &mut Guest, from: usize, wanted: &[(&str, &str)]) -> Result<()> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        let text = guest.serial().text();
        let shown = text.get(from..).unwrap_or_default();
        let missing = wanted.iter().find(|(action, subsystem)| {
            !shown.lines().any(|line| {
                line.starts_with("KERNEL[")
                    && line.contains(&format!("] {action} "))
                    && line.ends_with(&format!("({subsystem})"))
            })
        });
        let Some(missing) = missing else {
            return Ok(());
        };
        ensure!(
            guest.is_running() && Instant::now() < deadline,
            "The guest announced no {missing:?}, but\n{shown}\nthe VMM said: {}",
            guest.stderr().trim()
        );
        sleep(Duration::from_millis(20));
    }
}

/// Adds a disk and a network device, and takes both away when the guest has
/// seen them.
fn come_and_go(guest: &mut Guest, round: u32, image: &str) -> Result<()> {
    let name = round % NAMES;
    let (disk, net) = (format!("disk{name}"), format!("net{name}"));
    let before = Holdings::of(guest.pid())?;
    let from = guest.serial().text().len();
    guest.ch_remote_text(&[
        "add-disk",
        &format!("path={image},id={disk},image_type=raw"),
    ])?;
    guest.ch_remote_text(&["add-net", &format!("tap=plug,id={net}")])?;
    announced(guest, from, &[("add", "block"), ("add", "net")])
        .with_context(|| format!("Round {round}"))?;
    let from = guest.serial().text().len();
    guest.ch_remote_text(&["remove-device", &disk])?;
    guest.ch_remote_text(&["remove-device", &net])?;
    announced(guest, from, &[("remove", "block"), ("remove", "net")])
        .with_context(|| format!("Round {round}"))?;
    settled(guest, before)
}

fn image() -> Result<String> {
    let image = format!("{WORK}/plugged.raw");
    File::create(&image)
        .and_then(|file| file.set_len(1 << 20))
        .with_context(|| format!("Cannot make {image}"))?;
    Ok(image)
}

/// One disk and one network device, in a guest that does other things too.
pub fn once(guest: &mut Guest) -> Result<()> {
    guest.run(MONITOR)?;
    come_and_go(guest, 0, &image()?)?;
    guest.run("kill $(pidof udevadm)").map(drop)
}

/// Waits until the process holds what it held before; the guest's last word
/// about a device comes a little after its announcement.
fn settled(guest: &Guest, before: Holdings) -> Result<()> {
    let deadline = Instant::now() + SETTLING;
    loop {
        let now = Holdings::of(guest.pid())?;
        if now == before {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "Before: {before:?}; now: {now:?}"
        );
        sleep(Duration::from_millis(50));
    }
}

pub fn disks_and_nets_that_come_and_go_leave_nothing_behind(site: &Site) -> Result<()> {
    let rounds = if site.is_long() { 200 } else { 20 };
    let image = image()?;
    let spec = Spec {
        under: NOTHING_KEPT.map(str::to_owned).to_vec(),
        ..Spec::shell()
    };
    let mut guest = Guest::boot(site, &spec)?;
    let empty = Holdings::of(guest.pid())?;
    guest.run(MONITOR)?;
    let devices = guest.run("ls /sys/bus/pci/devices /sys/block /sys/class/net")?;
    // The first ones grow what is kept for all that follow.
    for round in 0..5 {
        come_and_go(&mut guest, round, &image)?;
    }
    settled(&guest, empty)?;
    let memory = own_memory(guest.pid(), u64::from(spec.memory_mib))?;
    for round in 5..rounds {
        come_and_go(&mut guest, round, &image)?;
    }
    settled(&guest, empty)?;
    let grown = own_memory(guest.pid(), u64::from(spec.memory_mib))?.saturating_sub(memory);
    ensure!(
        grown <= GROWTH,
        "{grown} bytes more after {rounds} disks and nets"
    );
    let left = guest.run("ls /sys/bus/pci/devices /sys/block /sys/class/net")?;
    ensure!(left == devices, "Before: {devices}\nnow: {left}");
    guest.hold_accounts().map(drop)
}
