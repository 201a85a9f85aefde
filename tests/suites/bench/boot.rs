//! What it takes to boot Linux to its first program.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::bench::boot::{
    CMDLINE, EXITS, EXITS_OF, MEMORY, PROGRAM, QEMU, REBOOT, SECONDS, UPTIME, of_peer,
};
use lab::guest;
use lab::oracle::{self, DebugfsTable};
use lab::peer;

use super::{figure, peers};
use crate::site::Site;

/// The guest's memory, and how its mapping is told from the VMM's own.
const MEMORY_MIB: u64 = 256;

/// Ended with the measurement, however that ends.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn measure(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let initramfs = dir.join("initramfs");
    let script = "read -r word\nreboot -f\n";
    guest::initramfs(&site.base_initramfs(), script, &initramfs)?;
    // Another boot takes too long where the first one takes a minute.
    let reboots = site.boots_quickly();
    let kernel = site.kernel();
    let program = site.bin().join("cloud-hypervisor");
    boot(
        cloud_hypervisor(&program, &kernel, &initramfs),
        reboots,
        &str::to_owned,
    )
    .context("Our own VMM")?;
    let size = fs::metadata(&program).context("Cannot look at the program")?;
    figure(PROGRAM, size.len() as f64);
    for (name, program) in peers()? {
        let command = cloud_hypervisor(&program, &kernel, &initramfs);
        boot(command, reboots, &|figure| of_peer(&name, figure))
            .with_context(|| format!("Peer {name}"))?;
    }
    if Path::new(peer::PROGRAM).exists() {
        let command = qemu(&kernel, &initramfs);
        // Its smallest machine does not come back from this kernel's reset.
        boot(command, false, &|figure| of_peer(QEMU, figure)).context("QEMU")?;
    }
    Ok(())
}

/// A program with the command line of Cloud Hypervisor.
fn cloud_hypervisor(program: &Path, kernel: &Path, initramfs: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg("--kernel")
        .arg(kernel)
        .arg("--initramfs")
        .arg(initramfs)
        .args(["--cmdline", CMDLINE, "--cpus", "boot=1"])
        .args(["--memory", &format!("size={MEMORY_MIB}M")])
        .args(["--console", "off", "--serial", "tty"]);
    command
}

/// Debian's QEMU with its smallest machine.
fn qemu(kernel: &Path, initramfs: &Path) -> Command {
    let mut command = Command::new(peer::PROGRAM);
    command
        .args(["-machine", "microvm,accel=kvm,rtc=on", "-nodefaults"])
        .args(["-cpu", "host", "-smp", "1", "-display", "none"])
        .args(["-m", &MEMORY_MIB.to_string(), "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", CMDLINE]);
    command
}

/// Boots, measures and ends one VMM whose serial port is its standard output.
fn boot(mut command: Command, reboots: bool, name_of: &dyn Fn(&str) -> String) -> Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let started = Instant::now();
    let mut vmm = Vmm(command.spawn().context("Cannot start it")?);
    let pid = vmm.0.id();
    let mut console = BufReader::new(vmm.0.stdout.take().context("The console is not there")?);
    let uptime = wait_until_up(&mut console)?;
    let took = started.elapsed();
    figure(&name_of(EXITS), oracle::debugfs_exits(pid)? as f64);
    for row in DebugfsTable::of_process(pid)?.rows {
        let reason = format!("{EXITS_OF}{}", row.symbol);
        figure(&name_of(&reason), row.figures[0] as f64);
    }
    figure(&name_of(SECONDS), took.as_secs_f64());
    figure(&name_of(UPTIME), uptime);
    figure(
        &name_of(MEMORY),
        oracle::own_memory(pid, MEMORY_MIB)? as f64,
    );
    if reboots {
        let mut input = vmm.0.stdin.take().context("The console is not there")?;
        let started = Instant::now();
        input.write_all(b"reboot\n").context("Cannot type")?;
        wait_until_up(&mut console).context("After a reboot")?;
        figure(&name_of(REBOOT), started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Waits for the guest's first program, in the kernel: whoever looks again and
/// again interrupts the vCPU, and every interrupt is an exit. Gives the guest's
/// own clock.
fn wait_until_up(console: &mut impl BufRead) -> Result<f64> {
    let mut shown = String::new();
    loop {
        let mut line = String::new();
        let count = console.read_line(&mut line);
        ensure!(
            count.context("Cannot read the console")? > 0,
            "Linux did not come up\n{shown}"
        );
        if let Some((_, uptime)) = line.split_once(guest::UP) {
            let uptime = uptime.trim().parse();
            return uptime.with_context(|| format!("{line:?} has no uptime"));
        }
        shown.push_str(&line);
    }
}
