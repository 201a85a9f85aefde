//! One process of our VMM and the guest in it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::http::{Response, request};
use super::stats::Stats;
use crate::console::Console;
use crate::oracle;

/// How long the API may take to come up.
const API_UP: Duration = Duration::from_secs(60);
/// How long a process may take to end once told to.
const END: Duration = Duration::from_secs(60);

/// Where the guest's serial console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serial {
    /// A file that the VMM writes.
    File,
    /// The VMM's own terminal: its standard input and output, which are kept
    /// and fed here.
    Terminal,
}

/// What to boot.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// Kernel, tiny guest or firmware.
    pub kernel: PathBuf,
    /// It is firmware.
    pub firmware: bool,
    /// Initramfs, if any.
    pub initramfs: Option<PathBuf>,
    /// Kernel command line, if any.
    pub cmdline: Option<String>,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The serial console.
    pub serial: Serial,
    /// Devices and whatever else the command line takes.
    pub more: Vec<String>,
    /// A program and its arguments that start the VMM, if not we ourselves.
    pub under: Vec<String>,
}

impl MachineSpec {
    /// A tiny guest.
    pub fn tiny(kernel: &Path) -> Self {
        MachineSpec {
            kernel: kernel.to_owned(),
            firmware: false,
            initramfs: None,
            cmdline: None,
            vcpus: 1,
            memory_mib: 64,
            serial: Serial::File,
            more: Vec::new(),
            under: Vec::new(),
        }
    }

    /// Firmware, which boots from its disks.
    pub fn firmware(firmware: &Path) -> Self {
        MachineSpec {
            firmware: true,
            serial: Serial::Terminal,
            ..MachineSpec::tiny(firmware)
        }
    }

    /// A Linux guest.
    pub fn linux(kernel: &Path, initramfs: &Path, vcpus: u32) -> Self {
        MachineSpec {
            kernel: kernel.to_owned(),
            firmware: false,
            initramfs: Some(initramfs.to_owned()),
            cmdline: Some(
                "console=ttyS0 quiet panic=-1 reboot=k mitigations=off tsc=reliable lpj=1000000"
                    .into(),
            ),
            vcpus,
            memory_mib: 256,
            serial: Serial::Terminal,
            more: Vec::new(),
            under: Vec::new(),
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// A running VMM; killed when dropped.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    dir: PathBuf,
    bin: PathBuf,
    serial: Console,
}

impl Machine {
    /// Starts the VMM with a guest. `dir` is the machine's own.
    pub fn boot(bin: &Path, dir: &Path, spec: &MachineSpec) -> Result<Machine> {
        let serial = dir.join("serial.log");
        let payload = if spec.firmware {
            "--firmware"
        } else {
            "--kernel"
        };
        let mut args: Vec<String> = vec![payload.into(), shown(&spec.kernel)];
        if let Some(initramfs) = &spec.initramfs {
            args.extend(["--initramfs".into(), shown(initramfs)]);
        }
        if let Some(cmdline) = &spec.cmdline {
            args.extend(["--cmdline".into(), cmdline.clone()]);
        }
        args.extend(["--cpus".into(), format!("boot={}", spec.vcpus)]);
        args.extend(["--memory".into(), format!("size={}M", spec.memory_mib)]);
        if !spec.more.iter().any(|word| word == "--console") {
            args.extend(["--console".into(), "off".into()]);
        }
        args.push("--serial".into());
        args.push(match spec.serial {
            Serial::File => format!("file={}", serial.display()),
            Serial::Terminal => "tty".into(),
        });
        args.extend(spec.more.iter().cloned());
        let output = match spec.serial {
            Serial::File => "stdout.log",
            Serial::Terminal => "serial.log",
        };
        let mut machine = Machine::start(bin, dir, &spec.under, &args, output)?;
        machine.wait_for_answer("/api/v1/vm.exit-stats")?;
        Ok(machine)
    }

    /// Starts the VMM without a guest.
    pub fn idle(bin: &Path, dir: &Path) -> Result<Machine> {
        Machine::idle_with(bin, dir, &[])
    }

    /// Starts the VMM with a guest that was saved: `how` is what `--restore` takes.
    pub fn restore(bin: &Path, dir: &Path, how: &str) -> Result<Machine> {
        let args = ["--restore".to_owned(), how.to_owned()];
        let mut machine = Machine::idle_with(bin, dir, &args)?;
        machine.wait_for_answer("/api/v1/vm.exit-stats")?;
        Ok(machine)
    }

    /// The same on this terminal.
    pub fn idle_on(bin: &Path, dir: &Path, terminal: &File) -> Result<Machine> {
        let copy = || terminal.try_clone().context("Cannot copy the terminal");
        let mut command = Command::new(bin.join("cloud-hypervisor"));
        command.stdin(copy()?).stdout(copy()?);
        Machine::launch(command, bin, dir, &[])
    }

    /// The same with arguments that describe no machine.
    pub fn idle_with(bin: &Path, dir: &Path, args: &[String]) -> Result<Machine> {
        Machine::start(bin, dir, &[], args, "stdout.log")
    }

    fn start(
        bin: &Path,
        dir: &Path,
        under: &[String],
        args: &[String],
        output: &str,
    ) -> Result<Machine> {
        fs::create_dir_all(dir).with_context(|| format!("Cannot make {}", dir.display()))?;
        let vmm = shown(&bin.join("cloud-hypervisor"));
        let mut words = under.iter().chain([&vmm]);
        let mut command = Command::new(words.next().context("There is nothing to start")?);
        command
            .args(words)
            .stdin(Stdio::piped())
            .stdout(File::create(dir.join(output))?);
        Machine::launch(command, bin, dir, args)
    }

    fn launch(mut command: Command, bin: &Path, dir: &Path, args: &[String]) -> Result<Machine> {
        let child = command
            .arg("--api-socket")
            .arg(dir.join("api.sock"))
            .args(args)
            .stderr(File::create(dir.join("stderr.log"))?)
            .spawn()
            .context("Cannot start cloud-hypervisor")?;
        let serial = Console::new(&dir.join("serial.log"));
        let mut machine = Machine {
            child,
            dir: dir.to_owned(),
            bin: bin.to_owned(),
            serial,
        };
        machine.wait_for_answer("/api/v1/vmm.ping")?;
        Ok(machine)
    }

    /// Waits until a resource is there: the API comes up before the guest does.
    fn wait_for_answer(&mut self, path: &str) -> Result<()> {
        let deadline = Instant::now() + API_UP;
        while !self
            .api("GET", path, None)
            .is_ok_and(|answer| answer.status == 200)
        {
            if !self.is_running() {
                bail!("The VMM ended at once: {}", self.stderr().trim());
            }
            ensure!(
                Instant::now() < deadline,
                "{path} did not come up: {}",
                self.stderr()
            );
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The machine's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The API socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// The guest's serial console.
    pub fn serial(&self) -> &Console {
        &self.serial
    }

    /// What the VMM wrote to standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.dir.join("stderr.log")).unwrap_or_default()
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for a line on the serial console.
    pub fn wait_for(&mut self, needle: &str, within: Duration) -> Result<String> {
        let Machine { child, serial, .. } = self;
        let line = serial.wait_for(needle, within, || matches!(child.try_wait(), Ok(None)));
        line.with_context(|| format!("The VMM said: {}", self.stderr().trim()))
    }

    /// Waits until the serial console carried this many bytes.
    pub fn wait_for_bytes(&mut self, count: u64, within: Duration) -> Result<Vec<u8>> {
        let Machine { child, serial, .. } = self;
        let bytes = serial.wait_for_bytes(count, within, || matches!(child.try_wait(), Ok(None)));
        bytes.with_context(|| format!("The VMM said: {}", self.stderr().trim()))
    }

    /// Waits until the serial console carried `needle` so many times in all.
    pub fn wait_for_nth(&mut self, needle: &str, times: u64, within: Duration) -> Result<()> {
        let Machine { child, serial, .. } = self;
        let alive = || matches!(child.try_wait(), Ok(None));
        let came = serial.wait_for_nth(needle, times, within, alive);
        came.with_context(|| format!("The VMM said: {}", self.stderr().trim()))
    }

    /// Waits until the serial console carried `needle` after it had carried a mark
    /// for the n-th time.
    pub fn wait_for_after(
        &mut self,
        mark: (&str, usize),
        needle: &str,
        within: Duration,
    ) -> Result<()> {
        let Machine { child, serial, .. } = self;
        let alive = || matches!(child.try_wait(), Ok(None));
        let came = serial.wait_for_after(mark, needle, within, alive);
        came.with_context(|| format!("The VMM said: {}", self.stderr().trim()))
    }

    /// Types a line on the guest's serial console.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.type_text(&format!("{line}\n"))
    }

    /// Types this, keys that are no text among it.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        let stdin = self
            .child
            .stdin
            .as_mut()
            .context("The terminal is closed")?;
        stdin.write_all(text.as_bytes()).context("Cannot type")?;
        stdin.flush().context("Cannot type")
    }

    /// A request to the API.
    pub fn api(&self, method: &str, path: &str, body: Option<&str>) -> Result<Response> {
        request(&self.socket(), method, path, body)
    }

    /// A request that must succeed.
    pub fn must(&self, method: &str, path: &str, body: Option<&str>) -> Result<Response> {
        let response = self.api(method, path, body)?;
        ensure!(
            matches!(response.status, 200 | 204),
            "{method} {path} gave {}: {}",
            response.status,
            response.body
        );
        Ok(response)
    }

    /// Runs `ch-remote` against this machine.
    pub fn ch_remote(&self, args: &[&str]) -> Result<Output> {
        Command::new(self.bin.join("ch-remote"))
            .arg("--api-socket")
            .arg(self.socket())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("Cannot start ch-remote")
    }

    /// Runs `ch-remote`, which must succeed, and returns what it printed.
    pub fn ch_remote_text(&self, args: &[&str]) -> Result<String> {
        let out = self.ch_remote(args)?;
        ensure!(
            out.status.success(),
            "ch-remote {args:?} failed: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The statistics over REST.
    pub fn stats(&self) -> Result<Stats> {
        Stats::read(&self.must("GET", "/api/v1/vm.exit-stats", None)?.json()?)
    }

    /// KVM's own count of this machine's exits.
    pub fn debugfs_exits(&self) -> Result<u64> {
        oracle::debugfs_exits(self.pid())
    }

    /// Waits until this machine's exits no longer move, as when its guest has
    /// halted for good.
    pub fn wait_until_silent(&self, within: Duration) -> Result<()> {
        oracle::wait_until_silent(self.pid(), within)
    }

    /// Waits for the process to end by itself.
    pub fn wait_for_end(&mut self) -> Result<Finished> {
        let deadline = Instant::now() + END;
        loop {
            if let Some(status) = self.child.try_wait().context("Cannot wait for the VMM")? {
                return Ok(Finished {
                    status,
                    stderr: self.stderr(),
                });
            }
            ensure!(
                Instant::now() < deadline,
                "The VMM did not end\n{}\n{}",
                self.stderr(),
                self.serial.tail()
            );
            sleep(Duration::from_millis(20));
        }
    }

    /// Ends the process over the API and waits for it.
    pub fn shut_down(mut self) -> Result<Finished> {
        self.must("PUT", "/api/v1/vmm.shutdown", None)?;
        self.wait_for_end()
    }

    /// Kills the process without warning.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("Cannot kill the VMM")?;
        self.child.wait().context("Cannot wait for the VMM")?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
