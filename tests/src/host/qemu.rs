//! SVM: QEMU's TCG, which emulates AMD's extension on any machine.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{BootFiles, EmulatedHost, Isa, MEMORY_MIB};
use crate::command::bound_command;

/// The host's timers tick without end. TCG now and then loses an interrupt that
/// a timer raises: it stays pending in the local APIC while the CPU halts, most
/// likely because `vmrun` and `vmexit` change a CPU's pending interrupts without
/// a lock. A tickless kernel then sleeps for ever; one that ticks is woken by
/// the next tick.
const TICK: &str = "nohz=off highres=off";

/// The emulated SVM host.
///
/// With more than one CPU, TCG in QEMU 7.2 freezes now and then, on the
/// distribution's modules as on ours. In `thread=multi` a CPU can go on
/// executing a translation of a kernel text patch's `int3` that memory no
/// longer holds; KVM patches `__schedule` whenever the first VM comes and the
/// last one goes. In `thread=single` a guest's CPU stops making progress. So
/// one CPU, as Bochs has, is the rule, and a host with two keeps a VM of its
/// own for as long as it runs, which spares it those patches.
pub struct Qemu {
    cpus: u32,
    counted: bool,
    ticks: bool,
}

impl Qemu {
    /// What nearly everything runs on.
    pub const ONE_CPU: Qemu = Qemu {
        cpus: 1,
        counted: false,
        ticks: true,
    };
    /// For what needs vCPUs that run at the same time or move.
    pub const TWO_CPUS: Qemu = Qemu {
        cpus: 2,
        counted: false,
        ticks: true,
    };
    /// Its clock counts instructions, a nanosecond each: the same run takes the
    /// same time. For figures. Linux 6.12 does not come up on it. It is tickless,
    /// as the host was that peers were measured on.
    pub const COUNTED: Qemu = Qemu {
        cpus: 1,
        counted: true,
        ticks: false,
    };
    /// The same with timers that tick, for what waits for devices, and for guests
    /// that boot EDK2.
    ///
    /// QEMU 7.2 ends in an assertion of its own (`tcg_handle_interrupt`, called
    /// from `helper_write_crN` without the lock) where a guest writes CR8 while
    /// KVM waits for its interrupt window. EDK2 writes CR8 at the end of every
    /// interrupt handler. Where clocks follow the wall, a busy machine lets two
    /// more ticks of EDK2's timer come before the handler of the first has ended,
    /// and that is the case within seconds; where they count instructions, a
    /// handler has ended long before the next tick.
    pub const COUNTED_TICKING: Qemu = Qemu {
        ticks: true,
        ..Qemu::COUNTED
    };
}

impl EmulatedHost for Qemu {
    fn isa(&self) -> Isa {
        Isa::Svm
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(if self.counted { 2400 } else { 1800 })
    }

    fn start(&self, files: &BootFiles, logs: &Path) -> Result<Child> {
        let log = logs.join("emulator.log");
        let output =
            File::create(&log).with_context(|| format!("Cannot write {}", log.display()))?;
        self.machine(files)
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
        let status = self
            .machine(files)
            .args(["-display", "none", "-serial", "mon:stdio"])
            .status()
            .context("Cannot start qemu-system-x86_64")?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }
}

impl Qemu {
    fn machine(&self, files: &BootFiles) -> Command {
        let (threads, keeper) = match self.cpus {
            1 => ("single", ""),
            _ => ("multi", " lab=keep-vm"),
        };
        let mut qemu = bound_command(
            "qemu-system-x86_64",
            ["-accel", &format!("tcg,thread={threads}")],
        );
        let tick = if self.ticks { TICK } else { "" };
        let counted = if self.counted {
            qemu.args(["-icount", "shift=0,sleep=off"]);
            " lab=counted"
        } else {
            ""
        };
        qemu.args(["-cpu", "max,+svm", "-nodefaults", "-no-reboot"])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-m", &MEMORY_MIB.to_string()])
            .arg("-kernel")
            .arg(&files.kernel)
            .arg("-initrd")
            .arg(&files.initramfs)
            .args(["-append"])
            .arg(format!("{} {tick}{keeper}{counted}", files.cmdline));
        for disk in &files.disks {
            let disk = format!("file={},format=raw,if=virtio,snapshot=on", disk.display());
            qemu.args(["-drive", &disk]);
        }
        qemu
    }
}
