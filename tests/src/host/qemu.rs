//! SVM: QEMU's TCG, which emulates AMD's extension on any machine.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{BootFiles, EmulatedHost, Isa, MEMORY_MIB};
use crate::command::bound_command;

/// One CPU, as Bochs has. With more, TCG in QEMU 7.2 freezes now and then, on
/// the distribution's modules as on ours: in `thread=multi` a CPU can go on
/// executing a translation of a kernel text patch's `int3` that memory no
/// longer holds (KVM patches `__schedule` whenever the first VM comes and the
/// last one goes), in `thread=single` a guest's CPU stops making progress.
const CPUS: u32 = 1;

/// The emulated SVM host.
pub struct Qemu;

impl EmulatedHost for Qemu {
    fn isa(&self) -> Isa {
        Isa::Svm
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(400)
    }

    fn start(&self, files: &BootFiles, logs: &Path) -> Result<Child> {
        let log = logs.join("emulator.log");
        let output =
            File::create(&log).with_context(|| format!("Cannot write {}", log.display()))?;
        machine(files)
            .args(["-display", "none"])
            .args([
                "-monitor",
                &format!("unix:{},server=on,wait=off", logs.join("monitor").display()),
            ])
            .args([
                "-serial",
                &format!("file:{}", logs.join("console.log").display()),
            ])
            .args([
                "-serial",
                &format!("file:{}", logs.join("results.log").display()),
            ])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("Cannot start qemu-system-x86_64")
    }

    fn shell(&self, files: &BootFiles, _logs: &Path) -> Result<()> {
        let status = machine(files)
            .args(["-display", "none", "-serial", "mon:stdio"])
            .status()
            .context("Cannot start qemu-system-x86_64")?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }
}

fn machine(files: &BootFiles) -> Command {
    let mut qemu = bound_command("qemu-system-x86_64", ["-accel", "tcg,thread=single"]);
    qemu.args(["-cpu", "max,+svm", "-nodefaults", "-no-reboot"])
        .args(["-smp", &CPUS.to_string()])
        .args(["-m", &MEMORY_MIB.to_string()])
        .arg("-kernel")
        .arg(&files.kernel)
        .arg("-initrd")
        .arg(&files.initramfs)
        .args(["-append", &files.cmdline]);
    qemu
}
