//! The same work on a disk and a network, in a guest of ours and in one of
//! QEMU's.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use lab::bench::boot::CMDLINE;
use lab::bench::io::{
    BACK_END, DISK_WORK, DRIVERS, NET_WORK, OURS, PROGRAMS, QEMU, SIZE_MIB, Work, exits, rate,
};
use lab::guest;
use lab::oracle;
use lab::peer::WHOLE_PROGRAM;

use super::{figure, peers};
use crate::site::Site;

/// Before and after a piece of work the guest says so, and waits for an answer.
const MARK: &str = "@mark ";
/// What the program says of it.
const SAID: &str = "@said ";
/// The guest has no more work.
const DONE: &str = "@done";

const MEMORY_MIB: u32 = 256;

const TAP: &str = "lab0";
const HOST: &str = "192.168.77.1";
const GUEST: &str = "192.168.77.2";

/// The guest's script before its work: drivers and programs.
const SET_UP: &str = "for m in /t/*.ko; do insmod $m || echo \"no $m\"; done\n\
    while ! [ -b /dev/vda ]; do usleep 10000; done\n\
    mkdir /p && mount -t ext4 -o ro /dev/vda /p || echo 'no programs'\n\
    for place in dev proc sys; do mount --bind /$place /p/$place; done\n\
    mount -t tmpfs tmp /p/tmp\n\
    mark() { echo \"@mark $1\"; read -r answer; }\n\
    inside() { chroot /p \"$@\"; }\n";

/// Ended with the measurement, however that ends; last, a tap or a server.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Subject {
    process: Running,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// A program to measure.
struct Vmm {
    /// As its figures are called.
    name: String,
    /// One with the command line of Cloud Hypervisor; QEMU has none.
    program: Option<PathBuf>,
}

/// Ours, Debian's QEMU, and the peers that were brought along.
fn vmms(site: &Site) -> Result<Vec<Vmm>> {
    let ours = (OURS.to_owned(), Some(site.bin().join("cloud-hypervisor")));
    let peers = peers()?.into_iter();
    Ok([ours, (QEMU.to_owned(), None)]
        .into_iter()
        .chain(peers.map(|(name, program)| (name, Some(program))))
        .map(|(name, program)| Vmm { name, program })
        .collect())
}

/// A VMM's own words for a guest's devices.
struct Devices {
    ours: Vec<String>,
    qemu: Vec<String>,
}

pub fn disk(site: &Site) -> Result<()> {
    let driver = format!("{DRIVERS}/brd.ko");
    let size = format!("rd_size={}", SIZE_MIB * 1024);
    run("insmod", &[&driver, "rd_nr=1", &size])?;
    // All of it is there, and nothing of it in the host's cache.
    let count = format!("count={SIZE_MIB}");
    let to = format!("of={BACK_END}");
    run(
        "dd",
        &["if=/dev/zero", &to, "bs=1M", &count, "oflag=direct"],
    )?;
    let mut script = SET_UP.to_owned();
    let fio = format!(
        "inside fio --name=work --filename=/dev/vdb --direct=1 --ioengine=libaio --thread \
         --gtod_reduce=1 --minimal --size={SIZE_MIB}m"
    );
    // Once without being looked at: the program has to come from its disk.
    script.push_str(&format!(
        "{fio} --rw=randread --bs=4k --iodepth=16 --io_size=1m >/dev/null\n"
    ));
    for work in DISK_WORK {
        script.push_str(&work_lines(&format!("{fio} {}", work.options)));
    }
    let devices = Devices {
        ours: [
            "--disk",
            &our_programs(),
            &format!("path={BACK_END},image_type=raw,direct=on"),
        ]
        .map(str::to_owned)
        .to_vec(),
        qemu: [
            &format!("-drive file={BACK_END},format=raw,if=none,id=data,cache=none,aio=io_uring"),
            "-object iothread,id=worker",
            "-device virtio-blk-pci,drive=data,iothread=worker",
        ]
        .iter()
        .flat_map(|words| words.split(' '))
        .map(str::to_owned)
        .collect(),
    };
    for vmm in &vmms(site)? {
        measured(site, vmm, &script, &devices, &DISK_WORK, |said| {
            // fio's terse form, version 3: reads from the sixth field on,
            // writes from the 47th; KiB, KiB a second, requests a second.
            let fields: Vec<&str> = said.split(';').collect();
            let number = |at: usize| fields.get(at)?.parse::<f64>().ok();
            [7, 48]
                .iter()
                .find_map(|&at| number(at).filter(|&rate| rate > 0.0))
        })?;
    }
    Ok(())
}

pub fn net(site: &Site) -> Result<()> {
    run("insmod", &[&site.module("tun").display().to_string()])?;
    let mut script = SET_UP.to_owned();
    script.push_str(&format!(
        "ip link set lo up; ip address add {GUEST}/24 dev eth0 && ip link set eth0 up || echo 'no net'\n"
    ));
    let iperf = format!("inside iperf3 -f m -c {HOST}");
    script.push_str(&format!("{iperf} -n 1M >/dev/null\n"));
    for work in NET_WORK {
        let line = format!("{iperf} {} | grep receiver", work.options);
        script.push_str(&work_lines(&line));
    }
    run("tunctl", &["-t", TAP])?;
    run("ip", &["address", "add", &format!("{HOST}/24"), "dev", TAP])?;
    run("ip", &["link", "set", TAP, "up"])?;
    let server = Command::new("/usr/bin/iperf3")
        .args(["-s", "-B", HOST])
        .stdout(Stdio::null())
        .spawn()
        .context("Cannot start iperf3")?;
    let _server = Running(server);
    let mac = "52:54:00:12:34:56";
    let devices = Devices {
        ours: [
            "--disk",
            &our_programs(),
            "--net",
            &format!("tap={TAP},mac={mac}"),
        ]
        .map(str::to_owned)
        .to_vec(),
        qemu: [
            &format!("-netdev tap,id=cable,ifname={TAP},script=no,downscript=no,vhost=off"),
            &format!("-device virtio-net-pci,netdev=cable,romfile=,mac={mac}"),
        ]
        .iter()
        .flat_map(|words| words.split(' '))
        .map(str::to_owned)
        .collect(),
    };
    for vmm in &vmms(site)? {
        measured(site, vmm, &script, &devices, &NET_WORK, |said| {
            let (before, _) = said.split_once(" Mbits/sec")?;
            before.rsplit(' ').next()?.parse().ok()
        })?;
    }
    Ok(())
}

/// Work between two marks; what its program said is shown after them, for each
/// byte on the console is an exit.
fn work_lines(line: &str) -> String {
    format!("mark begin\n{line} >/tmp/said\nmark end\necho \"{SAID}$(cat /tmp/said)\"\n")
}

fn our_programs() -> String {
    format!("path={PROGRAMS},readonly=on,image_type=raw")
}

fn measured(
    site: &Site,
    vmm: &Vmm,
    script: &str,
    devices: &Devices,
    works: &[Work],
    read_rate: fn(&str) -> Option<f64>,
) -> Result<()> {
    let mut subject = Subject::boot(
        site,
        vmm,
        &format!("{script}echo {DONE}\nsleep 1000\n"),
        devices,
    )?;
    for work in works {
        let (said, taken) = subject
            .work()
            .with_context(|| format!("{}, in {}", work.name, vmm.name))?;
        let value = read_rate(&said).with_context(|| format!("There is no rate in {said:?}"))?;
        figure(&rate(&vmm.name, work), value);
        figure(&exits(&vmm.name, work), taken as f64);
    }
    Ok(())
}

impl Subject {
    fn boot(site: &Site, vmm: &Vmm, script: &str, devices: &Devices) -> Result<Subject> {
        let initramfs = site.fresh_dir()?.join("initramfs");
        let modules = site.guest_modules()?;
        guest::initramfs_with(&site.base_initramfs(), script, &modules, &initramfs)?;
        let mut command = match &vmm.program {
            Some(program) => cloud_hypervisor(program, site, &initramfs, &devices.ours),
            None => qemu(site, &initramfs, &devices.qemu),
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("Cannot start {command:?}"))?;
        let input = child.stdin.take().context("There is no console")?;
        let output = child.stdout.take().context("There is no console")?;
        Ok(Subject {
            process: Running(child),
            input,
            output: BufReader::new(output),
        })
    }

    /// What the guest says next. Waits in the kernel: whoever looks again and
    /// again interrupts the vCPU, and every interrupt is an exit.
    fn next(&mut self, begin: &str) -> Result<String> {
        let mut shown = String::new();
        loop {
            let mut line = String::new();
            let count = self
                .output
                .read_line(&mut line)
                .context("Cannot read the console")?;
            ensure!(count > 0, "The guest ended:\n{shown}");
            if let Some(rest) = line.trim_end().strip_prefix(begin) {
                return Ok(rest.to_owned());
            }
            if line.starts_with(DONE) || line.starts_with("no ") {
                bail!("The guest says {line:?} in place of {begin:?}:\n{shown}");
            }
            shown.push_str(&line);
        }
    }

    /// What the program says of the next piece of work, and its exits.
    fn work(&mut self) -> Result<(String, u64)> {
        let mut seen = Vec::new();
        for mark in ["begin", "end"] {
            let said = self.next(MARK)?;
            ensure!(said == mark, "The guest is at {said:?}, not at {mark:?}");
            seen.push(oracle::debugfs_exits(self.process.0.id())?);
            self.input.write_all(b"\n").context("Cannot type")?;
        }
        let said = self.next(SAID)?;
        Ok((said, seen[1] - seen[0]))
    }
}

fn cloud_hypervisor(program: &Path, site: &Site, initramfs: &Path, devices: &[String]) -> Command {
    let mut command = Command::new(program);
    command
        .arg("--kernel")
        .arg(site.kernel())
        .arg("--initramfs")
        .arg(initramfs)
        .args(["--cmdline", CMDLINE, "--cpus", "boot=1"])
        .args(["--memory", &format!("size={MEMORY_MIB}M")])
        .args(["--console", "off", "--serial", "tty"])
        .args(devices);
    command
}

fn qemu(site: &Site, initramfs: &Path, devices: &[String]) -> Command {
    let mut command = Command::new(WHOLE_PROGRAM);
    command
        .args(["-machine", "microvm,accel=kvm,rtc=on,pcie=on"])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-cpu",
            "host",
            "-smp",
            "1",
        ])
        .args(["-m", &MEMORY_MIB.to_string(), "-display", "none"])
        .args(["-serial", "stdio", "-append", CMDLINE, "-kernel"])
        .arg(site.kernel())
        .arg("-initrd")
        .arg(initramfs)
        .args([
            "-drive",
            &format!("file={PROGRAMS},format=raw,if=none,id=programs,readonly=on"),
        ])
        .args(["-device", "virtio-blk-pci,drive=programs"])
        .args(devices);
    command
}

/// Runs a program of the host's, which must succeed.
fn run(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("Cannot start {program}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{program} {args:?} failed: {said}");
    Ok(())
}
