//! A Debian guest and a shell in it.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::oracle::{ExitHistogram, same_exits};
use lab::vmm::{Machine, MachineSpec};

use crate::site::{DEBIAN, Site};

/// The root file system as a disk of the host.
pub const ROOT_DISK: &str = "/dev/vda";
/// A disk that firmware boots, of the host's.
pub const EFI_DISK: &str = "/dev/vdc";
/// The host's file system with images to write to.
pub const WORK: &str = "/work";

/// How long the guest may take to any one thing that it does at once. The clock
/// of an emulated host on a busy machine runs fast, four times as fast at the
/// worst that was seen: what limits a trial is the lab outside.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(500);
/// How long systemd may take.
pub const BOOT: Duration = Duration::from_secs(1500);

/// What the serial console is looked at for, at most so often: whoever looks
/// takes the CPU from the guest.
const POLL: Duration = Duration::from_millis(100);

/// The shell's words.
const READY: &str = "@shell ready\n";
const STATUS: &str = "@shell status ";

/// The guest's first program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    Systemd,
    /// A shell alone: up in a tenth of the time.
    Shell,
}

/// What to boot.
#[derive(Clone, Debug)]
pub struct Spec {
    pub first: First,
    /// Firmware boots the root's disk, and what is there says the rest.
    pub firmware: bool,
    /// The root's disk, in the form of `--disk`.
    pub root: String,
    /// Whether the root's disk is only read, and changes are kept in memory.
    pub overlay: bool,
    pub vcpus: u32,
    pub memory_mib: u32,
    /// Further disks.
    pub disks: Vec<String>,
    /// More of the VMM's command line.
    pub more: Vec<String>,
    /// What starts the VMM.
    pub under: Vec<String>,
}

impl Spec {
    /// A shell on a root that no other guest can change.
    pub fn shell() -> Spec {
        Spec {
            first: First::Shell,
            firmware: false,
            root: format!("path={ROOT_DISK},readonly=on,image_type=raw"),
            overlay: true,
            vcpus: 1,
            memory_mib: 384,
            disks: Vec::new(),
            more: Vec::new(),
            under: Vec::new(),
        }
    }

    /// The whole of Debian on this disk.
    pub fn systemd(root: &str) -> Spec {
        Spec {
            first: First::Systemd,
            root: root.to_owned(),
            overlay: false,
            ..Spec::shell()
        }
    }

    /// What firmware makes of a disk that begins with an EFI system partition.
    pub fn firmware() -> Spec {
        Spec {
            firmware: true,
            ..Spec::systemd(&format!("path={EFI_DISK}"))
        }
    }

    pub fn with_disks(mut self, disks: &[String]) -> Spec {
        self.disks.extend(disks.iter().cloned());
        self
    }

    pub fn with(mut self, more: &[&str]) -> Spec {
        self.more.extend(more.iter().map(|&word| word.to_owned()));
        self
    }
}

/// A running guest, whose exits the tracepoint counts as well.
pub struct Guest {
    machine: Machine,
    histogram: ExitHistogram,
}

impl Deref for Guest {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }
}

impl Guest {
    /// Boots it and waits for a shell.
    pub fn boot(site: &Site, spec: &Spec) -> Result<Guest> {
        let mut guest = Guest::start(site, spec)?;
        match spec.first {
            First::Shell => guest.wait_for_text(READY, STEP_TIMEOUT)?,
            First::Systemd => guest.log_in(0)?,
        }
        Ok(guest)
    }

    fn start(site: &Site, spec: &Spec) -> Result<Guest> {
        let dir = site.fresh_dir()?;
        let mut machine = if spec.firmware {
            MachineSpec {
                vcpus: spec.vcpus,
                ..MachineSpec::firmware(Path::new("/lab/guest/firmware"))
            }
        } else {
            linux(site, spec)
        };
        machine.memory_mib = spec.memory_mib;
        machine
            .more
            .extend(["--disk".to_owned(), spec.root.clone()]);
        machine.more.extend(spec.disks.iter().cloned());
        machine.more.extend(spec.more.iter().cloned());
        machine.under.clone_from(&spec.under);
        let histogram = ExitHistogram::start()?;
        let machine = Machine::boot(&site.bin(), &dir, &machine)?;
        Ok(Guest { machine, histogram })
    }

    /// Waits for systemd, which starts at this place in all that was shown, and
    /// makes a shell of its login prompt.
    fn log_in(&mut self, from: usize) -> Result<()> {
        self.wait_from(from, " login: ", BOOT)?;
        self.type_line("root")?;
        self.wait_from(from, ":~# ", STEP_TIMEOUT)?;
        // No colours from here on.
        self.type_line("TERM=dumb exec lab-shell")?;
        self.wait_from(from, READY, STEP_TIMEOUT).map(drop)
    }

    /// Waits until the serial console shows a text, which need not be a line.
    pub fn wait_for_text(&mut self, needle: &str, within: Duration) -> Result<()> {
        self.wait_from(0, needle, within).map(drop)
    }

    /// The same from a place in all that was shown; returns what was shown
    /// from there.
    fn wait_from(&mut self, from: usize, needle: &str, within: Duration) -> Result<String> {
        let deadline = Instant::now() + within;
        loop {
            let running = self.is_running();
            let text = self.serial().text();
            if let Some(shown) = text.get(from..)
                && shown.contains(needle)
            {
                return Ok(shown.to_owned());
            }
            ensure!(
                running && Instant::now() < deadline,
                "No {needle:?} within {} s; the VMM said: {}\n{}",
                within.as_secs(),
                self.stderr().trim(),
                self.serial().tail()
            );
            sleep(POLL);
        }
    }

    /// Gives the shell a line to run; [`Guest::outcome`] is its other half.
    pub fn begin(&mut self, line: &str) -> Result<Running> {
        let from = self.serial().text().len();
        self.type_line(line)?;
        Ok(Running {
            line: line.to_owned(),
            from,
        })
    }

    /// Waits for a line's end. Returns what was printed meanwhile and the exit
    /// status.
    pub fn end(&mut self, running: &Running, within: Duration) -> Result<(String, i32)> {
        let status = format!("\n{STATUS}");
        // The end of what was shown before is a line's end too.
        let from = running.from.saturating_sub(1);
        let line = format!("While the guest ran `{}`", running.line);
        let shown = loop {
            let shown = self
                .wait_from(from, &status, within)
                .with_context(|| line.clone())?;
            // The number may still be on its way.
            if shown
                .split_once(&status)
                .is_some_and(|(_, rest)| rest.contains('\n'))
            {
                break shown;
            }
            sleep(POLL);
        };
        let (printed, rest) = shown.split_once(&status).unwrap_or_default();
        let code = rest.lines().next().unwrap_or_default();
        let code = code
            .parse()
            .with_context(|| format!("The shell's status is {code:?}"))?;
        Ok((printed.trim().to_owned(), code))
    }

    /// Runs a line in the guest's shell, which must succeed, and returns what
    /// it printed.
    pub fn run_within(&mut self, line: &str, within: Duration) -> Result<String> {
        let running = self.begin(line)?;
        let (printed, status) = self.end(&running, within)?;
        ensure!(
            status == 0,
            "In the guest `{line}` gave {status}:\n{printed}"
        );
        Ok(printed)
    }

    /// The same for what takes no time.
    pub fn run(&mut self, line: &str) -> Result<String> {
        self.run_within(line, STEP_TIMEOUT)
    }

    /// Has systemd reboot the machine, and waits for a shell.
    pub fn reboot_from_inside(&mut self) -> Result<()> {
        let from = self.serial().text().len();
        self.type_line("systemctl reboot")?;
        self.log_in(from)
    }

    /// Ends the machine while all of it is in use, in each way that leaves the
    /// VMM, and boots it again.
    pub fn reboot_from_outside(&mut self) -> Result<()> {
        for actions in [&["vm.reboot"][..], &["vm.shutdown", "vm.boot"]] {
            let from = self.serial().text().len();
            for action in actions {
                self.must("PUT", &format!("/api/v1/{action}"), None)?;
            }
            self.wait_from(from, READY, STEP_TIMEOUT)
                .with_context(|| actions.join(", "))?;
        }
        Ok(())
    }

    /// Holds the exits that were counted since the guest's first one against
    /// the tracepoint and against KVM's own count.
    pub fn hold_accounts(&mut self) -> Result<u64> {
        self.must("PUT", "/api/v1/vm.pause", None)?;
        let stats = self.stats()?;
        let traced = self.histogram.of_process(self.pid())?;
        let counted = stats.occurred();
        same_exits(&counted, &traced)?;
        let kvms = self.debugfs_exits()?;
        ensure!(
            stats.totals.exits == kvms && stats.sum() == stats.totals,
            "Total {}, KVM's own {kvms}, sum {:?} of {:?}",
            stats.totals.exits,
            stats.sum(),
            stats.totals
        );
        self.must("PUT", "/api/v1/vm.resume", None)?;
        Ok(kvms)
    }

    /// Switches the guest off from inside and checks that all ends well.
    pub fn power_off(mut self, how: &str) -> Result<()> {
        self.type_line(how)?;
        let finished = self.machine.wait_for_end()?;
        ensure!(
            finished.status.success(),
            "The VMM ended with {}: {}",
            finished.status,
            finished.stderr
        );
        Ok(())
    }

    /// Kills the VMM.
    pub fn kill(self) -> Result<()> {
        self.machine.kill()
    }
}

/// A machine whose kernel and initramfs are the host's files.
fn linux(site: &Site, spec: &Spec) -> MachineSpec {
    let initramfs = Path::new("/lab/guest/debian");
    let mut linux = MachineSpec::linux(&site.kernel(), initramfs, spec.vcpus);
    let init = match spec.first {
        First::Systemd => "/sbin/init",
        First::Shell => "/usr/local/sbin/lab-shell",
    };
    let root = if spec.overlay { "overlay" } else { "rw" };
    if let Some(cmdline) = &mut linux.cmdline {
        cmdline.push_str(&format!(" lab.root={root} lab.init={init}"));
    }
    linux
}

/// A line that the guest's shell runs.
pub struct Running {
    line: String,
    from: usize,
}

/// A program of the host's Debian.
pub fn hosts(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new("/bin/busybox");
    // By way of env, or busybox takes what it has a word for itself.
    command
        .args(["chroot", DEBIAN, "/usr/bin/env", program])
        .args(args);
    command
}

/// Runs a program of the host's Debian and returns its output.
pub fn run_on_host(program: &str, args: &[&str]) -> Result<String> {
    let out = hosts(program, args)
        .output()
        .with_context(|| format!("Cannot start {program}"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        bail!(
            "{program} {args:?} gave {}\n{text}{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(text)
}
