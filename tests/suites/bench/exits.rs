//! What accounting costs: an exit, memory, a reading.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::bench::exits::{
    LEAF_TICKS, READ_EXITS, READ_SWITCHES, READS, TICKS, TICKS_OFF, TICKS_TRACED, TICKS_TRIGGER,
    VCPU_OBJECT, VCPU_SLAB,
};
use lab::guest::{Instruction, Program};
use lab::oracle::{SyscallCount, vcpu_threads};
use lab::vmm::{Machine, MachineSpec};

use super::figure;
use crate::site::Site;

/// Exits of one round, and rounds: a timer interrupt falls into some rounds, and
/// the shortest has none.
const EXITS: u32 = 100;
const ROUNDS: u32 = 64;

/// vCPUs of a guest that asks about them all, and the leaves that it asks for.
const MANY_VCPUS: u32 = 64;
const TOTALS: [u32; 2] = [0x4fff_ffff, 0x4fff_fffe];

/// Answers that are asked for, and vCPUs that they are about.
const ANSWERS: u32 = 50;
const VCPUS: u32 = 4;

const PARAMETER: &str = "/sys/module/kvm/parameters/exit_stats";
const EVENTS: &str = "/sys/kernel/tracing/events/kvm";
const TRIGGER: &str = "hist:keys=exit_reason";

pub fn measure(site: &Site) -> Result<()> {
    memory()?;
    figure(TICKS, ticks(site, Instruction::Cpuid, 1)?);
    if site.is_patched() {
        for (name, leaf) in LEAF_TICKS.into_iter().zip(TOTALS) {
            let ticks = |vcpus| ticks(site, Instruction::Leaf(leaf), vcpus);
            let more = ticks(MANY_VCPUS)? - ticks(1)?;
            figure(name, more / f64::from(MANY_VCPUS - 1));
        }
        write(PARAMETER, "N")?;
        let off = ticks(site, Instruction::Cpuid, 1);
        write(PARAMETER, "Y")?;
        figure(TICKS_OFF, off?);
        return reading(site);
    }
    for value in ["1", "0"] {
        if value == "0" {
            figure(TICKS_TRACED, ticks(site, Instruction::Cpuid, 1)?);
        }
        for event in ["kvm_exit", "kvm_entry"] {
            write(&format!("{EVENTS}/{event}/enable"), value)?;
        }
    }
    let trigger = format!("{EVENTS}/kvm_exit/trigger");
    write(&trigger, TRIGGER)?;
    let counted = ticks(site, Instruction::Cpuid, 1);
    write(&trigger, &format!("!{TRIGGER}"))?;
    figure(TICKS_TRIGGER, counted?);
    Ok(())
}

/// Ticks of an exit and the four instructions of the guest around it, in a guest
/// with so many vCPUs of which one runs.
fn ticks(site: &Site, instruction: Instruction, vcpus: u32) -> Result<f64> {
    let readings = ROUNDS as usize / 4;
    let guest = Program::new()
        .time(instruction, EXITS, ROUNDS)
        .report(readings)
        .halt();
    let mut machine = site.boot_tiny_on(&guest, vcpus)?;
    let serial = machine.wait_for_bytes(Program::report_writes(readings), site.tiny_deadline())?;
    let shortest = lab::guest::readings(&serial, readings)?
        .into_iter()
        .flat_map(|reading| [reading.eax, reading.ebx, reading.ecx, reading.edx])
        .min()
        .context("There are no rounds")?;
    Ok(f64::from(shortest) / f64::from(EXITS))
}

fn memory() -> Result<()> {
    let slab = Path::new("/sys/kernel/slab/kvm_vcpu");
    let read = |name: &str| -> Result<f64> {
        let path = slab.join(name);
        let text =
            fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        text.trim()
            .parse()
            .with_context(|| format!("{} says {text:?}", path.display()))
    };
    figure(VCPU_OBJECT, read("object_size")?);
    let pages = f64::from(1 << read("order")? as u32);
    figure(VCPU_SLAB, pages * 4096.0 / read("objs_per_slab")?);
    Ok(())
}

/// The guest's vCPUs stand still, so that what moves is the reading's doing.
fn reading(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    fs::write(&kernel, Program::new().halt()).context("Cannot write the guest")?;
    let spec = MachineSpec {
        vcpus: VCPUS,
        ..MachineSpec::tiny(&kernel)
    };
    let machine = Machine::boot(&site.bin(), &dir, &spec)?;
    machine.wait_until_silent(site.tiny_deadline())?;
    let (exits, switches) = (machine.debugfs_exits()?, switches(machine.pid())?);
    let count = SyscallCount::start("pread64")?;
    for _ in 0..ANSWERS {
        machine.must("GET", "/exit-stats", None)?;
    }
    let reads = count.of_process(machine.pid())?;
    figure(READS, reads as f64 / f64::from(ANSWERS * VCPUS));
    figure(READ_EXITS, (machine.debugfs_exits()? - exits) as f64);
    figure(
        READ_SWITCHES,
        (self::switches(machine.pid())? - switches) as f64,
    );
    Ok(())
}

/// How often the threads of the vCPUs left a CPU.
fn switches(pid: u32) -> Result<u64> {
    let threads = vcpu_threads(pid)?;
    ensure!(
        threads.len() == VCPUS as usize,
        "{} threads of {VCPUS} vCPUs",
        threads.len()
    );
    Ok(threads
        .iter()
        .map(|thread| thread.waits + thread.preemptions)
        .sum())
}

fn write(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("Cannot write {value:?} to {path}"))
}
