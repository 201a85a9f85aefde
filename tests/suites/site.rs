//! Where the suites run and what they find there.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use instrumentation::table::{ExitTable, Isa};
use lab::artifact::guide;
use lab::guest::{self, CpuidQuery, CpuidReading};
use lab::vmm::{Machine, MachineSpec};

use crate::evidence::LinuxRun;

/// Where the host has mounted Debian's root file system, read-only.
pub const DEBIAN: &str = "/debian";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Modules {
    /// The distribution's KVM.
    Stock,
    /// The KVM that counts.
    Patched,
}

#[derive(Clone, Debug, Args)]
pub struct SiteArgs {
    /// Which extension the host's CPU has: vmx or svm.
    #[arg(long, value_parser = isa)]
    isa: Isa,
    /// Which KVM is loaded.
    #[arg(long, value_enum)]
    modules: Modules,
    /// The folder with `bin` and `guest`.
    #[arg(long, default_value = "/lab")]
    root: PathBuf,
    /// This is a machine that others use: leave its devices alone, and accept
    /// that not every trial can run.
    #[arg(long)]
    shared: bool,
    /// Take the time that large amounts take.
    #[arg(long)]
    long: bool,
    /// How often a long run takes each way to reset a machine.
    #[arg(long, default_value_t = 10)]
    resets: usize,
}

fn isa(text: &str) -> Result<Isa, String> {
    [Isa::Vmx, Isa::Svm]
        .into_iter()
        .find(|isa| isa.as_str() == text)
        .ok_or_else(|| "it is neither vmx nor svm".to_owned())
}

/// A trial that cannot say anything here.
#[derive(Debug)]
pub struct Skipped(String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// Ends a trial without a verdict.
pub fn skip(reason: &str) -> Result<()> {
    Err(Skipped(reason.to_owned()).into())
}

/// The exit reasons that trials raise, by the numbers of the host's manual.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    pub cpuid: u32,
    pub io: u32,
    pub hlt: u32,
    pub read_msr: u32,
    pub write_msr: u32,
    pub hypercall: u32,
    pub nested_fault: u32,
}

pub struct Site {
    args: SiteArgs,
    scratch: PathBuf,
    machines: AtomicU32,
    linux: OnceLock<Result<LinuxRun, String>>,
}

impl Site {
    pub fn new(args: SiteArgs) -> Result<Site> {
        let scratch = std::env::temp_dir().join(format!("lab-suites-{}", std::process::id()));
        fs::create_dir_all(&scratch)
            .with_context(|| format!("Cannot make {}", scratch.display()))?;
        Ok(Site {
            args,
            scratch,
            machines: AtomicU32::new(0),
            linux: OnceLock::new(),
        })
    }

    pub fn isa(&self) -> Isa {
        self.args.isa
    }

    pub fn table(&self) -> &'static ExitTable {
        self.args.isa.table()
    }

    pub fn is_patched(&self) -> bool {
        self.args.modules == Modules::Patched
    }

    /// Whether a trial that cannot run counts as failed.
    pub fn all_required(&self) -> bool {
        !self.args.shared
    }

    /// Whether the host is ours alone.
    pub fn is_shared(&self) -> bool {
        self.args.shared
    }

    /// Whether trials may take minutes each.
    pub fn is_long(&self) -> bool {
        self.args.long
    }

    /// How often each way to reset a machine is taken.
    pub fn resets(&self) -> usize {
        if self.args.long { self.args.resets } else { 1 }
    }

    /// What starts a program for which there is no io_uring.
    pub fn without_io_uring(&self) -> Vec<String> {
        let suites = self.bin().join("lab-suites");
        let isa = self.isa().as_str();
        let words = ["--isa", isa, "--modules", "patched", "without-io-uring"];
        let mut command = vec![suites.display().to_string()];
        command.extend(words.map(str::to_owned));
        command
    }

    /// Whether Debian is there as a guest.
    pub fn has_debian(&self) -> bool {
        Path::new(DEBIAN).join("etc/debian_version").exists()
    }

    /// Bochs takes the better part of a minute to boot Linux in a guest.
    pub fn boots_quickly(&self) -> bool {
        self.args.shared || self.isa() == Isa::Svm
    }

    /// Whether the host's clock counts instructions: however busy the machine is
    /// that emulates it, no time passes while nothing is executed.
    pub fn counts_time(&self) -> bool {
        fs::read_to_string("/proc/cmdline")
            .is_ok_and(|line| line.split_whitespace().any(|word| word == "lab=counted"))
    }

    /// Whether the host runs Linux 6.1. What the host's kernel has no part in is
    /// tried on that one alone.
    pub fn runs_6_1(&self) -> bool {
        fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|name| name.starts_with("6.1."))
    }

    /// Whether devices are tried here: they are the VMM's own work, so one host is
    /// enough, and where Linux boots quickly.
    pub fn tries_devices(&self) -> bool {
        self.is_patched() && self.boots_quickly() && !self.is_shared() && self.runs_6_1()
    }

    pub fn numbers(&self) -> Numbers {
        match self.isa() {
            Isa::Vmx => Numbers {
                cpuid: 10,
                io: 30,
                hlt: 12,
                read_msr: 31,
                write_msr: 32,
                hypercall: 18,
                nested_fault: 48,
            },
            Isa::Svm => Numbers {
                cpuid: 0x72,
                io: 0x7b,
                hlt: 0x78,
                read_msr: 0x7c,
                write_msr: 0x7c,
                hypercall: 0x81,
                nested_fault: 0x400,
            },
        }
    }

    pub fn bin(&self) -> PathBuf {
        self.args.root.join("bin")
    }

    /// A module of KVM's as the host's image holds it.
    pub fn module(&self, name: &str) -> PathBuf {
        self.args.root.join(format!("modules/{name}.ko"))
    }

    /// The same of the distribution's, beside ours.
    pub fn stock_module(&self, name: &str) -> PathBuf {
        self.args.root.join(format!("stock/{name}.ko"))
    }

    /// The C program of the guide.
    pub fn guide_program(&self) -> PathBuf {
        self.args.root.join(guide::IN_ROOT)
    }

    pub fn kernel(&self) -> PathBuf {
        self.args.root.join("guest/vmlinuz")
    }

    /// Drivers for guests, in the order in which they are loaded.
    pub fn guest_modules(&self) -> Result<Vec<(String, PathBuf)>> {
        let folder = self.args.root.join("guest/modules");
        let mut modules = fs::read_dir(&folder)
            .with_context(|| format!("Cannot list {}", folder.display()))?
            .map(|entry| {
                let entry = entry?;
                let name = entry.file_name();
                Ok((format!("/t/{}", name.to_string_lossy()), entry.path()))
            })
            .collect::<Result<Vec<_>>>()?;
        modules.sort();
        Ok(modules)
    }

    pub fn base_initramfs(&self) -> PathBuf {
        self.args.root.join("guest/initramfs")
    }

    /// A folder of its own for a machine or a trial.
    pub fn fresh_dir(&self) -> Result<PathBuf> {
        let number = self.machines.fetch_add(1, Ordering::Relaxed);
        let dir = self.scratch.join(number.to_string());
        fs::create_dir_all(&dir).with_context(|| format!("Cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Boots a tiny guest.
    pub fn boot_tiny(&self, image: &[u8]) -> Result<Machine> {
        self.boot_tiny_on(image, 1)
    }

    /// The same on so many vCPUs.
    pub fn boot_tiny_on(&self, image: &[u8], vcpus: u32) -> Result<Machine> {
        let dir = self.fresh_dir()?;
        let kernel = dir.join("guest.elf");
        fs::write(&kernel, image).context("Cannot write the guest")?;
        let spec = MachineSpec {
            vcpus,
            ..MachineSpec::tiny(&kernel)
        };
        Machine::boot(&self.bin(), &dir, &spec)
    }

    /// Boots a Linux guest that runs `script`.
    pub fn boot_linux(&self, script: &str, vcpus: u32) -> Result<Machine> {
        self.boot_linux_from(&self.kernel(), script, vcpus)
    }

    /// The same with another kernel file.
    pub fn boot_linux_from(&self, kernel: &Path, script: &str, vcpus: u32) -> Result<Machine> {
        let dir = self.fresh_dir()?;
        let initramfs = dir.join("initramfs");
        guest::initramfs(&self.base_initramfs(), script, &initramfs)?;
        Machine::boot(
            &self.bin(),
            &dir,
            &MachineSpec::linux(kernel, &initramfs, vcpus),
        )
    }

    /// What a guest reads when it asks these leaves, one after the other.
    pub fn ask(&self, queries: &[CpuidQuery]) -> Result<Vec<CpuidReading>> {
        let mut machine = self.boot_tiny(&guest::cpuid_reader(queries))?;
        let bytes = guest::Program::report_writes(queries.len());
        let serial = machine.wait_for_bytes(bytes, self.tiny_deadline())?;
        guest::readings(&serial, queries.len())
    }

    /// How long a tiny guest may take.
    pub fn tiny_deadline(&self) -> Duration {
        Duration::from_secs(if self.boots_quickly() { 120 } else { 20 })
    }

    /// How long Linux may take to reach its init. A second of Bochs's clock is
    /// 10^9 instructions, half a minute of ours when the guest is busy, and a
    /// boot takes two of them.
    pub fn linux_deadline(&self) -> Duration {
        Duration::from_secs(if self.boots_quickly() { 120 } else { 30 })
    }

    /// What a Linux guest showed; booted once, looked at by many trials.
    pub fn linux(&self) -> Result<&LinuxRun> {
        self.linux
            .get_or_init(|| LinuxRun::record(self).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("The Linux guest could not be observed: {error}"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}
