//! A Linux guest with Debian's own drivers for the machine's devices and a shell
//! that takes commands over the serial port.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::guest;
use lab::vmm::Machine;
use serde_json::{Value, json};

use crate::site::Site;

const DONE: &str = "@done ";
/// How long a command in the guest may take.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// A Linux guest whose shell listens on the serial port.
pub struct Guest {
    pub machine: Machine,
    /// The machine's folder.
    pub dir: PathBuf,
    shell: UnixStream,
}

impl Guest {
    /// Boots with this configuration besides.
    pub fn boot(site: &Site, more: Value) -> Result<Guest> {
        Guest::boot_with(site, |_| Ok(()), |_| more)
    }

    /// The same, with a configuration that names files. `prepare` makes them in
    /// the machine's folder.
    pub fn boot_with(
        site: &Site,
        prepare: impl FnOnce(&Path) -> Result<()>,
        more: impl FnOnce(&Path) -> Value,
    ) -> Result<Guest> {
        let dir = site.fresh_dir()?;
        prepare(&dir)?;
        let machine = Machine::idle(&site.bin(), &dir)?;
        Guest::boot_in(site, machine, dir, more)
    }

    /// The same in a VMM that runs.
    pub fn boot_in(
        site: &Site,
        machine: Machine,
        dir: PathBuf,
        more: impl FnOnce(&Path) -> Value,
    ) -> Result<Guest> {
        let script = format!(
            "for m in /t/*.ko; do insmod $m || echo \"no $m\"; done\n\
             echo '{DONE}0'\n\
             while read -r line; do eval \"$line\"; echo \"{DONE}$?\"; done\n"
        );
        let initramfs = dir.join("initramfs");
        let modules = site.guest_modules()?;
        guest::initramfs_with(&site.base_initramfs(), &script, &modules, &initramfs)?;
        let serial = dir.join("serial.sock");
        let mut config = json!({
            "payload": {
                "kernel": site.kernel(), "initramfs": initramfs,
                "cmdline": "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable lpj=1000000",
            },
            "memory": {"size": 256 << 20},
            "serial": {"mode": "Socket", "socket": serial},
            "console": {"mode": "Off"},
        });
        if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more(&dir)) {
            config.extend(more);
        }
        machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
        let shell = UnixStream::connect(&serial)?;
        machine.must("PUT", "/api/v1/vm.boot", None)?;
        let mut guest = Guest {
            machine,
            dir,
            shell,
        };
        guest.wait_booted(site)?;
        Ok(guest)
    }

    /// One that went on in this machine, with its serial port.
    pub fn from_parts(machine: Machine, dir: PathBuf, shell: UnixStream) -> Guest {
        Guest {
            machine,
            dir,
            shell,
        }
    }

    fn wait_booted(&mut self, site: &Site) -> Result<()> {
        let said = self.answer(site.linux_deadline())?;
        ensure!(!said.contains("no /t/"), "A driver is missing:\n{said}");
        Ok(())
    }

    /// Has the guest's kernel panic, upon which it resets the machine.
    pub fn panic_and_boot_again(&mut self, site: &Site) -> Result<()> {
        self.shell.write_all(b"echo c >/proc/sysrq-trigger\n")?;
        self.wait_booted(site).context("After a panic")
    }

    /// Reboots by request.
    pub fn reboot(&mut self, site: &Site) -> Result<()> {
        self.machine.must("PUT", "/api/v1/vm.reboot", None)?;
        self.wait_booted(site).context("After a reboot")
    }

    /// What the guest says to a command that has to succeed.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.shell.write_all(format!("{command}\n").as_bytes())?;
        self.answer(STEP_TIMEOUT)
            .with_context(|| format!("The guest was told: {command}"))
    }

    fn answer(&mut self, within: Duration) -> Result<String> {
        let deadline = Instant::now() + within;
        self.shell.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut said = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&said);
            if let Some((before, status)) = text.split_once(DONE)
                && let Some((status, _)) = status.split_once('\n')
            {
                ensure!(status.trim() == "0", "It failed ({status}):\n{before}");
                return Ok(before.trim().to_owned());
            }
            ensure!(
                Instant::now() < deadline && self.machine.is_running(),
                "No answer:\n{text}\nThe VMM said: {}",
                self.machine.stderr()
            );
            let mut buffer = [0; 4096];
            match self.shell.read(&mut buffer) {
                Ok(0) => bail!("The serial port is closed:\n{text}"),
                Ok(count) => said.extend_from_slice(&buffer[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Runs a command until it prints this.
    pub fn run_until(&mut self, command: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            let said = self.run(command)?;
            if said == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{command} gives {said:?}, not {wanted:?}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub fn counter(&self, device: &str, name: &str) -> Result<u64> {
        let counters = self
            .machine
            .must("GET", "/api/v1/vm.counters", None)?
            .json()?;
        counters[device][name]
            .as_u64()
            .with_context(|| format!("No {name} of {device} in {counters}"))
    }

    /// Memory that the process has, in KiB.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.machine.pid()))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"))
            .context("No VmRSS")?
            .trim()
            .parse()
            .context("VmRSS is no number")
    }
}

/// A sparse file.
pub fn sparse(path: &Path, size: u64) -> Result<()> {
    File::create(path)?.set_len(size)?;
    Ok(())
}
