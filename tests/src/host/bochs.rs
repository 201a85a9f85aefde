//! VMX: Bochs, which emulates Intel's extension with EPT on any machine.
//!
//! Debian builds Bochs with its debugger, which wants a terminal and the
//! command to continue; both are given to it. The host boots from a disc,
//! because Bochs loads no kernel by itself.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::terminal::{self, PseudoTerminal};
use super::{BootFiles, EmulatedHost, Isa, MEMORY_MIB};
use crate::command::{bound_command, command, output};

/// The host's timer counts down; it does not wait for a time stamp. Bochs delivers
/// an interrupt at the very instruction, and Linux rounds its deadlines down: it
/// would find itself a few ticks early, set the timer again and be interrupted
/// twice, at up to every timer of a boot, as the calibration falls out. On real
/// hardware the interrupt's way takes longer than that.
const TIMER: &str = "lapic=notscdeadline";

/// The emulated VMX host.
pub struct Bochs;

impl EmulatedHost for Bochs {
    fn isa(&self) -> Isa {
        Isa::Vmx
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(1500)
    }

    fn start(&self, files: &BootFiles, logs: &Path) -> Result<Child> {
        let first = format!("mode=file, dev={}", logs.join("console.log").display());
        start(files, logs, &first)
    }

    fn shell(&self, files: &BootFiles, logs: &Path) -> Result<()> {
        // Bochs writes a file or talks to a socket; only the latter takes input.
        let listener = TcpListener::bind("127.0.0.1:0").context("Cannot listen for Bochs")?;
        let port = listener.local_addr()?.port();
        let mut child = start(
            files,
            logs,
            &format!("mode=socket-client, dev=localhost:{port}"),
        )?;
        let (line, _) = listener
            .accept()
            .context("Bochs did not connect its serial port")?;
        let bridged = terminal::bridge(line);
        if bridged.is_err() {
            let _ = child.kill();
        }
        // Its status says nothing: a host that powers off ends it with 1 too.
        child.wait().context("Cannot wait for Bochs")?;
        bridged
    }
}

fn start(files: &BootFiles, logs: &Path, first_port: &str) -> Result<Child> {
    ensure!(files.disks.is_empty(), "The emulated VMX host has no disks");
    let disc = disc(files, logs)?;
    let settings = logs.join("bochsrc");
    let continue_ = logs.join("debugger-commands");
    fs::write(&continue_, "c\n").context("Cannot write the debugger's commands")?;
    fs::write(&settings, bochsrc(&disc, logs, first_port))
        .with_context(|| format!("Cannot write {}", settings.display()))?;
    let terminal = PseudoTerminal::open()?;
    let screen = File::create(logs.join("emulator.log")).context("Cannot write emulator.log")?;
    let child = bound_command("bochs", ["-q", "-f"])
        .arg(&settings)
        .arg("-rc")
        .arg(&continue_)
        .env("TERM", "xterm")
        .stdin(terminal.slave()?)
        .stdout(terminal.slave()?)
        .stderr(terminal.slave()?)
        .spawn()
        .context("Cannot start bochs")?;
    // The guest's screen is a second one, and Bochs stops when it is full.
    terminal.drain_to(screen, "connected to screen \"");
    Ok(child)
}

/// `broadwell_ult` is the model whose clock relations are right, and at 1e9
/// instructions a second timer interrupts are as rare as on real hardware.
/// Power-off reports a panic; `report` ends the run with the ports flushed.
fn bochsrc(disc: &Path, logs: &Path, first_port: &str) -> String {
    format!(
        "cpu: model=broadwell_ult, count=1, ips=1000000000, reset_on_triple_fault=0\n\
         memory: guest={MEMORY_MIB}, host={MEMORY_MIB}\n\
         romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=cdrom, path={}, status=inserted\n\
         boot: cdrom\n\
         clock: sync=none, time0=946684800\n\
         com1: enabled=1, {first_port}\n\
         com2: enabled=1, mode=file, dev={}\n\
         log: {}\n\
         panic: action=report\n\
         error: action=ignore\n\
         info: action=ignore\n\
         display_library: term\n",
        disc.display(),
        logs.join("results.log").display(),
        logs.join("bochs.log").display(),
    )
}

fn disc(files: &BootFiles, logs: &Path) -> Result<PathBuf> {
    let disc = logs.join("host.iso");
    let content = logs.join("disc");
    let isolinux = content.join("isolinux");
    fs::create_dir_all(&isolinux).context("Cannot make the disc's folder")?;
    for (from, to) in [
        (
            Path::new("/usr/lib/ISOLINUX/isolinux.bin"),
            isolinux.join("isolinux.bin"),
        ),
        (
            Path::new("/usr/lib/syslinux/modules/bios/ldlinux.c32"),
            isolinux.join("ldlinux.c32"),
        ),
        (&files.kernel, content.join("vmlinuz")),
        (&files.initramfs, content.join("initrd")),
    ] {
        fs::copy(from, &to).with_context(|| format!("Cannot copy {}", from.display()))?;
    }
    fs::write(
        isolinux.join("isolinux.cfg"),
        format!(
            "DEFAULT host\nLABEL host\nKERNEL /vmlinuz\nAPPEND initrd=/initrd {} {TIMER}\n",
            files.cmdline
        ),
    )?;
    output(
        command("xorriso", ["-as", "mkisofs", "-quiet", "-o"])
            .arg(&disc)
            .args(["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"])
            .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
            .arg(&content),
    )?;
    fs::remove_dir_all(&content)?;
    Ok(disc)
}
