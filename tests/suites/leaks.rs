//! A thousand VMs come and go. Is all their memory given back, and does none of
//! them begin with what another one left?

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use instrumentation::table::Isa;
use kvm_bindings::kvm_enable_cap;
use kvm_ioctls::{Kvm, VmFd};
use lab::guest::{Instruction, Program};
use lab::oracle::{self, DebugfsTable, KernelMemory};
use lab::vmm::Machine;
use serde_json::json;

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "leaks",
    // Bochs would take an hour; nothing here depends on the instruction set.
    applies: |site| site.is_patched() && site.isa() == Isa::Svm && !site.is_shared(),
    trials: trials![thousand_vms_leave_nothing_behind],
};

/// VMs made here with KVM's ioctls, which never run; those that a VMM boots one
/// after the other; and those of VMMs that are killed.
const IDLE: u32 = 700;
const BOOTED: u32 = 260;
const KILLED: u32 = 40;
/// So many of each come first: they fill what the kernel keeps for good.
const FIRST: u32 = 20;

/// Linux 6.12 keeps address ranges of vmalloc that were given back, to reuse
/// them. What is mapped in such ranges is told apart.
const KEPT: &str = "vmap_area";

const KVM_CAP_EXIT_STATS: u32 = 0x4558_5354;
const LEAVES: u64 = 1;
const LATENCY: u64 = 2;

fn thousand_vms_leave_nothing_behind(site: &Site) -> Result<()> {
    let kvm = Kvm::new().context("Cannot open /dev/kvm")?;
    let vmm = Machine::idle(&site.bin(), &site.fresh_dir()?)?;
    make_idle(&kvm, FIRST)?;
    boot(site, &vmm, FIRST)?;
    boot_and_kill(site, FIRST)?;
    let before = KernelMemory::settled()?;
    boot(site, &vmm, BOOTED)?;
    boot_and_kill(site, KILLED)?;
    make_idle(&kvm, IDLE)?;
    // Some of it is freed only after a grace period of RCU.
    let mut judged = Ok(());
    for _ in 0..20 {
        judged = ensure_given_back(&before, &KernelMemory::settled()?);
        if judged.is_ok() {
            break;
        }
        sleep(Duration::from_millis(500));
    }
    judged?;
    let warnings = oracle::warnings()?;
    ensure!(
        warnings.is_empty(),
        "The kernel says:\n{}",
        warnings.join("\n")
    );
    Ok(())
}

/// One object or page lost in every eighth VM is too much: there are more of
/// each kind, and what else the host does takes some ten KiB.
fn ensure_given_back(before: &KernelMemory, after: &KernelMemory) -> Result<()> {
    let vms = i64::from(IDLE + BOOTED + KILLED);
    let many = vms / 8;
    let (old, new) = (before.in_cache("kvm_vcpu")?, after.in_cache("kvm_vcpu")?);
    ensure!(new == old, "{new} vCPUs are left, {old} were there before");
    let grown: Vec<String> = after
        .objects
        .iter()
        .filter(|(name, _)| *name != KEPT)
        .filter_map(|(name, new)| {
            let old = before.objects.get(name).copied().unwrap_or(0);
            (new - old >= many).then(|| format!("{name} from {old} to {new}"))
        })
        .collect();
    ensure!(grown.is_empty(), "Slabs grew: {}", grown.join(", "));
    for (what, old, new, limit) in [
        (
            "that nothing can reclaim",
            before.unreclaimable,
            after.unreclaimable,
            many * 4,
        ),
        ("of vmalloc", before.vmalloc, after.vmalloc, many * 4),
        // Programs and page tables take of it too. So it only tells whether
        // the pages of a vCPU come back that no slab holds, some five.
        ("that is not free", -before.free, -after.free, vms * 16),
    ] {
        ensure!(
            new - old < limit,
            "{} KiB more {what} than before {vms} VMs",
            new - old
        );
    }
    Ok(())
}

/// How a VM meets the histograms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Histograms {
    Never,
    /// Its vCPUs come when they are on.
    BeforeVcpus,
    /// Switched on between its vCPUs, and off again.
    ForAWhile,
    /// The same by the operator, and left on.
    FromDebugfs,
}

const KINDS: [Histograms; 4] = [
    Histograms::Never,
    Histograms::BeforeVcpus,
    Histograms::ForAWhile,
    Histograms::FromDebugfs,
];

fn make_idle(kvm: &Kvm, count: u32) -> Result<()> {
    for (number, kind) in (0..count).zip(KINDS.into_iter().cycle()) {
        idle(kvm, kind).with_context(|| format!("VM {number}, histograms {kind:?}"))?;
    }
    Ok(())
}

/// One VM, from nothing to its end.
fn idle(kvm: &Kvm, kind: Histograms) -> Result<()> {
    let vm = kvm.create_vm().context("Cannot make a VM")?;
    vm.create_irq_chip()
        .context("Cannot make its interrupt controllers")?;
    let folder = folder(&vm);
    if kind == Histograms::BeforeVcpus {
        switch(&vm, LEAVES | LATENCY)?;
    }
    let _vcpu = vm.create_vcpu(0).context("Cannot make a vCPU")?;
    if kind == Histograms::ForAWhile {
        switch(&vm, LEAVES | LATENCY)?;
    }
    if kind == Histograms::FromDebugfs {
        let file = folder.join("exit_stats_latency_switch");
        fs::write(&file, "1").with_context(|| format!("Cannot write {}", file.display()))?;
    }
    let _second = vm.create_vcpu(1).context("Cannot make a second vCPU")?;

    let table = DebugfsTable::of_vm(&folder)?;
    ensure!(
        (table.own, table.exits, table.life()) == (0, 0, 0),
        "It begins with figures: {table:?}"
    );
    let on = kind != Histograms::Never;
    ensure_histograms(&folder, on, false)?;
    if kind == Histograms::ForAWhile {
        switch(&vm, LEAVES)?;
        ensure_histograms(&folder, false, false)?;
    }
    Ok(())
}

fn folder(vm: &VmFd) -> PathBuf {
    let name = format!("{}-{}", std::process::id(), vm.as_raw_fd());
    Path::new("/sys/kernel/debug/kvm").join(name)
}

fn switch(vm: &VmFd, features: u64) -> Result<()> {
    let mut request = kvm_enable_cap {
        cap: KVM_CAP_EXIT_STATS,
        ..Default::default()
    };
    request.args[0] = features;
    vm.enable_cap(&request)
        .with_context(|| format!("Cannot switch on {features:#x} alone"))
}

/// A line that says whether they are on, then one a reason that has any.
fn ensure_histograms(folder: &Path, on: bool, filled: bool) -> Result<()> {
    let file = folder.join("exit_stats_latency");
    let text =
        fs::read_to_string(&file).with_context(|| format!("Cannot read {}", file.display()))?;
    // A kernel that is locked down refuses to read a file that could be written.
    let mode = fs::metadata(&file)?.permissions().mode();
    ensure!(mode & 0o222 == 0, "Its mode is {mode:o}");
    let first = if on { "latency on" } else { "latency off" };
    ensure!(
        text.lines().next() == Some(first) && (text.lines().count() > 1) == filled,
        "Expected {first:?}, filled: {filled}, and read:\n{text}"
    );
    Ok(())
}

/// A VMM boots one guest after the other, every other one with histograms on.
fn boot(site: &Site, vmm: &Machine, count: u32) -> Result<()> {
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    let program = Program::new().repeat(Instruction::Cpuid, 100);
    fs::write(&kernel, program.repeat(Instruction::Out(0x3f8), 1).halt())?;
    for number in 0..count {
        let histograms = number % 2 == 1;
        let serial = dir.join("serial.log");
        let config = json!({
            "memory": {"size": 16 << 20},
            "payload": {"kernel": kernel},
            "serial": {"mode": "File", "file": serial},
            "console": {"mode": "Off"},
            "exit_stats": {"guest_leaves": true, "latency": histograms},
        });
        vmm.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
        vmm.must("PUT", "/api/v1/vm.boot", None)?;
        let deadline = Instant::now() + site.tiny_deadline();
        while fs::metadata(&serial).map_or(0, |file| file.len()) == 0 {
            ensure!(Instant::now() < deadline, "Guest {number} wrote nothing");
            sleep(Duration::from_millis(1));
        }
        let stats = vmm.stats()?;
        ensure!(
            stats.exits(site.numbers().cpuid) == 100,
            "Guest {number} executed CPUID 100 times: {:?}",
            stats.occurred()
        );
        let folders = oracle::debugfs_vms(vmm.pid())?;
        let folder = folders.first().context("The VMM has no VM")?;
        ensure_histograms(folder, histograms, histograms)?;
        vmm.must("PUT", "/api/v1/vm.delete", None)?;
        fs::remove_file(&serial)?;
    }
    Ok(())
}

/// VMMs with a guest at work, every other one with histograms on, killed.
fn boot_and_kill(site: &Site, count: u32) -> Result<()> {
    let image = Program::new().ask_for_ever();
    for number in 0..count {
        let machine = site.boot_tiny(&image)?;
        let folders = oracle::debugfs_vms(machine.pid())?;
        let folder = folders.first().context("The VMM has no VM")?;
        if number % 2 == 1 {
            ensure_histograms(folder, false, false)?;
            fs::write(folder.join("exit_stats_latency"), "1").context("Cannot switch on")?;
            sleep(Duration::from_millis(20));
            ensure_histograms(folder, true, true)?;
        }
        let files = machine.socket();
        machine.kill()?;
        if let Some(files) = files.parent() {
            fs::remove_dir_all(files).with_context(|| format!("Cannot remove {files:?}"))?;
        }
    }
    Ok(())
}
