//! What it takes to boot Linux to its first program.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::bench::boot::{CMDLINE, EXITS, EXITS_OF, MEMORY, PROGRAM, SECONDS, UPTIME};
use lab::guest;
use lab::oracle::{self, DebugfsTable};

use super::figure;
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
    guest::initramfs(&site.base_initramfs(), "read -r word\n", &initramfs)?;
    let program = site.bin().join("cloud-hypervisor");
    let mut command = Command::new(&program);
    command
        .arg("--kernel")
        .arg(site.kernel())
        .arg("--initramfs")
        .arg(&initramfs)
        .args(["--cmdline", CMDLINE, "--cpus", "boot=1"])
        .args(["--memory", &format!("size={MEMORY_MIB}M")])
        .args(["--console", "off", "--serial", "tty"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let started = Instant::now();
    let mut vmm = Vmm(command.spawn().context("Cannot start cloud-hypervisor")?);
    let pid = vmm.0.id();
    // Waits in the kernel: whoever looks again and again interrupts the vCPU,
    // and every interrupt is an exit.
    let mut console = BufReader::new(vmm.0.stdout.take().context("The console is not there")?);
    let mut shown = String::new();
    let up = loop {
        let mut line = String::new();
        ensure!(
            console
                .read_line(&mut line)
                .context("Cannot read the console")?
                > 0,
            "Linux did not come up\n{shown}"
        );
        if line.contains(guest::UP) {
            break line;
        }
        shown.push_str(&line);
    };
    let took = started.elapsed();
    figure(EXITS, oracle::debugfs_exits(pid)? as f64);
    for row in DebugfsTable::of_process(pid)?.rows {
        figure(&format!("{EXITS_OF}{}", row.symbol), row.figures[0] as f64);
    }
    figure(SECONDS, took.as_secs_f64());
    let uptime = up
        .split_once(guest::UP)
        .map_or("", |(_, uptime)| uptime.trim());
    figure(
        UPTIME,
        uptime
            .parse()
            .with_context(|| format!("{up:?} has no uptime"))?,
    );
    figure(MEMORY, oracle::own_memory(pid, MEMORY_MIB)? as f64);
    let size = fs::metadata(&program).context("Cannot look at the program")?;
    figure(PROGRAM, size.len() as f64);
    Ok(())
}
