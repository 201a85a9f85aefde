//! KVM hosts: two emulated ones with real VMX and real SVM, and the machine
//! that the lab runs on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use instrumentation::table::Isa;

use crate::artifact::cpio::Cpio;
use crate::artifact::host_image::compress;
use crate::console::Console;

pub mod bare;
mod bochs;
mod qemu;
mod terminal;

pub use bochs::Bochs;
pub use qemu::Qemu;

/// Kernel parameters of every emulated host. Address-space randomisation and
/// mitigations would only make runs less alike; the loop calibration is
/// skipped because the emulators' clocks need none.
const KERNEL_PARAMETERS: &str = "console=ttyS0 panic=-1 quiet mitigations=off nokaslr \
                                 tsc=reliable lpj=1000000";

/// Memory of an emulated host in MiB.
const MEMORY_MIB: u32 = 1536;

/// How long a host may take to power off after its last word.
const POWER_OFF: Duration = Duration::from_secs(30);

/// Which KVM modules a host loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Modules {
    /// The distribution's own.
    Stock,
    /// Ours, from this folder.
    Patched(PathBuf),
}

impl Modules {
    /// As it is written.
    pub fn as_str(&self) -> &'static str {
        match self {
            Modules::Stock => "stock",
            Modules::Patched(_) => "patched",
        }
    }
}

/// What a host boots from.
#[derive(Clone, Debug)]
pub struct BootFiles {
    /// The distribution's bzImage.
    pub kernel: PathBuf,
    /// The root file system.
    pub initramfs: PathBuf,
    /// The whole command line.
    pub cmdline: String,
    /// Disk images, for an SVM host alone. What is written to them is forgotten.
    pub disks: Vec<PathBuf>,
}

/// An emulator that boots Debian's kernel as a KVM host.
pub trait EmulatedHost: Sync {
    /// Which virtualisation extension its CPU has.
    fn isa(&self) -> Isa;

    /// How long a run of all suites may take.
    fn deadline(&self) -> Duration;

    /// Starts the emulator with the first serial port written to
    /// `logs/console.log` and the second to `logs/results.log`.
    fn start(&self, files: &BootFiles, logs: &Path) -> Result<Child>;

    /// Connects the host's first serial port with our terminal until it
    /// powers off.
    fn shell(&self, files: &BootFiles, logs: &Path) -> Result<()>;
}

/// The emulated host of an instruction set.
pub fn emulated(isa: Isa) -> &'static dyn EmulatedHost {
    match isa {
        Isa::Vmx => &Bochs,
        Isa::Svm => &Qemu::ONE_CPU,
    }
}

/// Boots a host, runs a script in it and passes every line of its results to
/// `relay`. Returns the script's exit status.
pub fn run(
    host: &dyn EmulatedHost,
    kernel: &Path,
    image: &Path,
    script: &str,
    logs: &Path,
    relay: &mut dyn FnMut(&str),
) -> Result<i32> {
    let job = Job {
        script,
        files: &[],
        patience: Patience::Whole(host.deadline()),
        disks: &[],
    };
    run_job(host, kernel, image, &job, logs, relay)
}

/// What a host is booted for.
pub struct Job<'a> {
    /// A shell script.
    pub script: &'a str,
    /// Programs that it needs, by their path in the host.
    pub files: &'a [(String, PathBuf)],
    /// When to give up.
    pub patience: Patience,
    /// Disk images, for an SVM host alone.
    pub disks: &'a [PathBuf],
}

/// How long a host may take.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// From its start to its last word.
    Whole(Duration),
    /// From one word to the next.
    Silence(Duration),
}

impl Patience {
    fn span(self) -> Duration {
        match self {
            Patience::Whole(span) | Patience::Silence(span) => span,
        }
    }
}

/// Like [`run`], with all that can be chosen.
pub fn run_job(
    host: &dyn EmulatedHost,
    kernel: &Path,
    image: &Path,
    job: &Job<'_>,
    logs: &Path,
    relay: &mut dyn FnMut(&str),
) -> Result<i32> {
    let initramfs = logs.join("initramfs");
    let mut more = Cpio::new().file("/lab/run", 0o755, job.script.as_bytes());
    for (inside, path) in job.files {
        more = more.copy(inside, 0o755, path)?;
    }
    append(image, &more.finish(), &initramfs)?;
    let files = BootFiles {
        kernel: kernel.to_owned(),
        initramfs,
        cmdline: KERNEL_PARAMETERS.to_owned(),
        disks: job.disks.to_vec(),
    };
    let mut child = host.start(&files, logs)?;
    let outcome = watch(&mut child, job.patience, logs, relay);
    let _ = child.kill();
    let _ = child.wait();
    // Large and rebuilt each time; the logs beside it are what is kept.
    let _ = fs::remove_file(&files.initramfs);
    outcome
}

/// Boots a host and gives its console to the person at the terminal.
pub fn shell(host: &dyn EmulatedHost, kernel: &Path, image: &Path, logs: &Path) -> Result<()> {
    let files = BootFiles {
        kernel: kernel.to_owned(),
        initramfs: image.to_owned(),
        cmdline: format!("{KERNEL_PARAMETERS} lab=shell"),
        disks: Vec::new(),
    };
    host.shell(&files, logs)
}

/// The image followed by a small archive; the kernel unpacks both.
fn append(image: &Path, archive: &[u8], to: &Path) -> Result<()> {
    let packed = to.with_extension("more");
    compress(archive, &packed)?;
    let mut whole = fs::read(image).with_context(|| format!("Cannot read {}", image.display()))?;
    whole.resize(whole.len().next_multiple_of(4), 0);
    whole.extend(fs::read(&packed)?);
    fs::remove_file(&packed)?;
    fs::write(to, whole).with_context(|| format!("Cannot write {}", to.display()))
}

fn watch(
    child: &mut Child,
    patience: Patience,
    logs: &Path,
    relay: &mut dyn FnMut(&str),
) -> Result<i32> {
    let console = Console::new(&logs.join("console.log"));
    let mut results = Console::new(&logs.join("results.log"));
    let mut deadline = Instant::now() + patience.span();
    let mut status = None;
    loop {
        let ended = child
            .try_wait()
            .context("Cannot wait for the emulator")?
            .is_some();
        for line in results.new_lines() {
            if matches!(patience, Patience::Silence(_)) {
                deadline = Instant::now() + patience.span();
            }
            match line.strip_prefix("@lab exit ") {
                Some(code) => {
                    status = Some(code.trim().parse().unwrap_or(1));
                    deadline = Instant::now() + POWER_OFF;
                }
                None => relay(&line),
            }
        }
        match (status, ended) {
            (Some(status), true) => return Ok(status),
            (None, true) => {
                bail!(
                    "The host powered off before its script ended\n{}",
                    console.tail()
                )
            }
            (Some(_), false) if Instant::now() >= deadline => {
                bail!("The host did not power off\n{}", console.tail())
            }
            (None, false) if Instant::now() >= deadline => bail!(
                "The host did not finish within {} s\n{}\n{}",
                patience.span().as_secs(),
                results.tail(),
                console.tail()
            ),
            _ => sleep(Duration::from_millis(50)),
        }
    }
}
