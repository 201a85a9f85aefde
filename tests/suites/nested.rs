//! A guest that runs a guest of its own: each exit of the inner one is an exit
//! of the vCPU that it runs on, whoever handles it.
//!
//! The outer guest is a hypervisor of a few lines for exact numbers, and Linux
//! with the distribution's KVM and then with ours, under our VMM both times.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use instrumentation::table::Isa;
use lab::guest::{
    self, CpuidQuery, CpuidReading, Instruction, Nested, NestedReport, Program, readings,
};
use lab::oracle::{DebugfsTable, ExitHistogram, same_exits};
use lab::vmm::{Machine, MachineSpec};

use crate::accounting::host_may_add;
use crate::evidence::between;
use crate::site::{Site, skip};
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "nested",
    applies: |site| site.is_patched() && site.isa() == Isa::Svm,
    trials: trials![
        each_exit_of_an_inner_guest_is_counted_once_whoever_handles_it,
        inner_guest_reads_the_host_where_its_hypervisor_lets_it,
        exits_that_only_the_hypervisor_asks_for_are_in_the_total_alone,
    ],
};

/// Reasons of the control registers: the hypervisor switches paging on, and the
/// CPU chooses among them.
const CONTROL: [u32; 5] = [0x00, 0x04, 0x10, 0x14, 0x65];
/// What takes Linux to show.
pub const LINUX: Suite = Suite {
    name: "nested",
    applies: Site::is_patched,
    trials: trials![inner_guest_of_linux_reads_the_kvm_that_runs_it],
};

const RDTSC: u32 = 0x6e;
const VMRUN: u32 = 0x80;
const VMMCALL: u32 = 0x81;

/// Some of everything.
fn some(leaf: u32, subleaf: u32) -> Nested {
    Nested {
        cpuid_intercepted: 101,
        cpuid_passed: 67,
        rdtsc: 43,
        out: 29,
        asked: CpuidQuery { leaf, subleaf },
    }
}

/// Runs it to its last halt.
fn run(site: &Site, nested: &Nested) -> Result<(Machine, NestedReport, ExitHistogram)> {
    let histogram = ExitHistogram::start()?;
    let mut machine = site.boot_tiny(&nested.image()?)?;
    let bytes = Program::report_writes(Nested::READINGS);
    let serial = machine.wait_for_bytes(bytes, site.tiny_deadline())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    Ok((machine, Nested::report(&serial)?, histogram))
}

fn each_exit_of_an_inner_guest_is_counted_once_whoever_handles_it(site: &Site) -> Result<()> {
    let numbers = site.numbers();
    let nested = some(0x4fff_fffd, numbers.cpuid);
    let (machine, report, histogram) = run(site, &nested)?;
    // What the hypervisor saw: the CPUIDs and OUTs that it did not ask for are
    // not among it.
    let (cpuids, rdtscs) = (nested.cpuid_intercepted, nested.rdtsc);
    ensure!(
        report.seen == [cpuids, rdtscs, 1, 1, 0] && report.vmruns == cpuids + rdtscs + 2,
        "{report:?}"
    );

    let stats = machine.stats()?;
    let expected = BTreeMap::from([
        // Those of the inner guest, and the hypervisor's own.
        (numbers.cpuid, cpuids + nested.cpuid_passed + 1),
        (RDTSC, rdtscs),
        (VMMCALL, 1),
        // The inner guest's, then the hypervisor's.
        (numbers.hlt, 2),
        (VMRUN, report.vmruns),
        (
            numbers.io,
            nested.out + Program::report_writes(Nested::READINGS) as u32,
        ),
        // EFER read and written, and where the hypervisor's state is saved.
        (numbers.read_msr, 3),
    ]);
    let counted = stats.occurred();
    let by_guests: BTreeMap<u32, u32> = counted
        .iter()
        .filter(|(number, _)| !host_may_add(site, **number) && !CONTROL.contains(number))
        .map(|(&number, &exits)| (number, exits as u32))
        .collect();
    ensure!(
        by_guests == expected,
        "{by_guests:?} counted, {expected:?} executed"
    );
    let traced = histogram.of_process(machine.pid())?;
    same_exits(&counted, &traced)?;
    let own = machine.debugfs_exits()?;
    ensure!(
        stats.sum() == stats.totals && stats.totals.exits == own && stats.other.exits == 0,
        "Sum {:?}, total {:?}, KVM's own {own}",
        stats.sum(),
        stats.totals
    );
    Ok(())
}

fn inner_guest_reads_the_host_where_its_hypervisor_lets_it(site: &Site) -> Result<()> {
    let nested = some(0x4fff_fffd, site.numbers().cpuid);
    let (_machine, report, _histogram) = run(site, &nested)?;
    let exits = |eax| CpuidReading {
        eax,
        ebx: 0,
        ecx: 0,
        edx: 0,
    };
    let all = nested.cpuid_intercepted + nested.cpuid_passed;
    let answer = Nested::ANSWER;
    let by_hypervisor = CpuidReading {
        eax: answer,
        ebx: answer,
        ecx: answer,
        edx: answer,
    };
    ensure!(
        report.by_hypervisor == by_hypervisor,
        "The hypervisor answers, but the inner guest reads {report:x?}"
    );
    ensure!(
        report.by_host == exits(all) && report.own == exits(all + 1),
        "{all} CPUIDs in the inner guest, then one in the hypervisor: {report:?}"
    );
    Ok(())
}

fn exits_that_only_the_hypervisor_asks_for_are_in_the_total_alone(site: &Site) -> Result<()> {
    // KVM itself never asks for RDTSC and has no handler: not enabled, 0 in
    // all four, though the table on the host has the count.
    let nested = some(0x4fff_fffd, RDTSC);
    let (machine, report, _histogram) = run(site, &nested)?;
    let zero = CpuidReading {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    };
    let row = machine.stats()?.reasons.get(&RDTSC).cloned();
    ensure!(
        report.own == zero && row.as_ref().is_some_and(|row| !row.enabled),
        "{report:?}, on the host {row:?}"
    );
    ensure!(
        row.is_some_and(|row| row.counters.exits == u64::from(nested.rdtsc)),
        "Not the inner guest's RDTSCs"
    );
    drop(machine);

    let nested = some(0x4fff_ffff, 0);
    let (machine, report, _histogram) = run(site, &nested)?;
    let before = [
        report.vmruns,
        nested.cpuid_intercepted,
        nested.cpuid_passed,
        nested.rdtsc,
        nested.out,
    ];
    let least: u32 = before.iter().sum();
    let total = machine.stats()?.totals.exits;
    ensure!(
        report.own.eax >= least && u64::from(report.own.eax) < total,
        "At least {least}, {report:?}, {total} on the host"
    );
    Ok(())
}

/// CPUIDs of the inner guest before it asks: many more than its hypervisor and
/// the Linux around it execute meanwhile.
const INNER_CPUIDS: u32 = 5000;

/// More than those, and less than the inner guest's.
const AROUND: u64 = 4000;

/// What Linux does as a guest: an inner guest on the distribution's KVM, then
/// on ours, each time with its own reading of its exits before and after.
fn script(vendor: &str, cpuid: u32, bytes: u64) -> String {
    let exits = format!("exit-stats --format leaves | grep '^0x4ffffffd  {cpuid:#010x}'");
    format!(
        "mount -t debugfs debug /sys/kernel/debug\n\
         mount -t tmpfs tmp /tmp\n\
         for kvm in stock ours; do\n\
         insmod /t/$kvm/kvm.ko; insmod /t/$kvm/{vendor}.ko\n\
         echo \"@$kvm before\"; {exits}\n\
         /t/cloud-hypervisor --kernel /t/inner --cpus boot=1 --memory size=64M \
             --console off --serial file=/tmp/$kvm &\n\
         until [ \"$(stat -c %s /tmp/$kvm 2>/dev/null || echo 0)\" -ge {bytes} ]; do sleep 0.1; done\n\
         echo \"@$kvm after\"; {exits}\n\
         echo \"@$kvm inner\"; hexdump -v -e '1/1 \"%02x\"' /tmp/$kvm; echo\n\
         echo \"@$kvm table\"; cat /sys/kernel/debug/kvm/*-*/exit_stats; echo \"@$kvm end\"\n\
         kill $!; wait $!\n\
         rmmod {module} kvm\n\
         done\n\
         echo '@guest ready'\n\
         read -r word\n",
        module = vendor.replace('-', "_"),
    )
}

fn inner_guest_of_linux_reads_the_kvm_that_runs_it(site: &Site) -> Result<()> {
    let vendor = match site.isa() {
        Isa::Vmx => "kvm-intel",
        Isa::Svm => "kvm-amd",
    };
    let cpuid = site.numbers().cpuid;
    let query = |leaf, subleaf| CpuidQuery { leaf, subleaf };
    let queries = [query(0x4fff_fffd, cpuid), query(0x4fff_fffd, u32::MAX)];
    let bytes = Program::report_writes(queries.len());
    let inner = Program::new()
        .repeat(Instruction::Cpuid, INNER_CPUIDS)
        .ask(&queries)
        .report(queries.len())
        .halt();
    let histogram = ExitHistogram::start()?;
    let mut machine = boot_with_kvm(site, vendor, &inner, &script(vendor, cpuid, bytes))?;
    machine.wait_for("@guest ready", site.linux_deadline() * 2)?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let stats = machine.stats()?;
    let traced = histogram.of_process(machine.pid())?;
    let own = machine.debugfs_exits()?;
    same_exits(&stats.occurred(), &traced)?;
    ensure!(
        stats.sum() == stats.totals && stats.totals.exits == own,
        "Sum {:?}, total {:?}, KVM's own {own}",
        stats.sum(),
        stats.totals
    );

    let serial = machine.serial().text();
    let executed = u64::from(INNER_CPUIDS) + queries.len() as u64;
    for kvm in ["stock", "ours"] {
        let part = |from: &str, to: &str| {
            between(&serial, &format!("@{kvm} {from}"), &format!("@{kvm} {to}"))
        };
        let before = exits(part("before", "after")?)?;
        let after = exits(part("after", "inner")?)?;
        ensure!(
            after - before >= executed && after - before < executed + AROUND,
            "With {kvm} modules {executed} CPUIDs in the inner guest, {} at its host",
            after - before
        );
        let [asked, undefined] = readings(&bytes_of(part("inner", "table")?)?, queries.len())?[..]
        else {
            unreachable!("as many answers as queries");
        };
        let table = part("table", "end")?;
        if kvm == "ours" {
            let table = DebugfsTable::parse(table)?;
            ensure!(
                asked.eax == INNER_CPUIDS + 1 && undefined.edx == u32::MAX,
                "The inner guest reads {asked:x?} and {undefined:x?}"
            );
            ensure!(
                table.exits_of(cpuid) == executed && table.exits == table.own,
                "Its hypervisor counts {table:?}"
            );
        } else {
            ensure!(
                asked == undefined && undefined.edx != u32::MAX,
                "The inner guest reads {asked:x?} and {undefined:x?}"
            );
        }
    }
    Ok(())
}

/// Boots Linux with both kinds of KVM, our VMM and a guest for it.
fn boot_with_kvm(site: &Site, vendor: &str, inner: &[u8], script: &str) -> Result<Machine> {
    let dir = site.fresh_dir()?;
    let tiny = dir.join("inner");
    fs::write(&tiny, inner).context("Cannot write the inner guest")?;
    let mut files = vec![
        ("/t/inner".to_owned(), tiny),
        (
            "/t/cloud-hypervisor".to_owned(),
            site.bin().join("cloud-hypervisor"),
        ),
    ];
    for module in ["kvm", vendor] {
        for (kind, path) in [
            ("stock", site.stock_module(module)),
            ("ours", site.module(module)),
        ] {
            if !path.exists() {
                skip("there are no modules for a guest to load")?;
            }
            files.push((format!("/t/{kind}/{module}.ko"), path));
        }
    }
    files.push(("/t/irqbypass.ko".to_owned(), site.module("irqbypass")));
    let initramfs = dir.join("initramfs");
    let script = format!("insmod /t/irqbypass.ko\n{script}");
    guest::initramfs_with(&site.base_initramfs(), &script, &files, &initramfs)?;
    let spec = MachineSpec {
        memory_mib: 384,
        ..MachineSpec::linux(&site.kernel(), &initramfs, 1)
    };
    Machine::boot(&site.bin(), &dir, &spec)
}

/// The exits in a line of the guest's own reader: leaf, subleaf, EAX, EBX.
fn exits(line: &str) -> Result<u64> {
    let register = |index: usize| -> Result<u64> {
        let word = line.split_whitespace().nth(index);
        let digits = word.and_then(|word| word.strip_prefix("0x"));
        let digits = digits.with_context(|| format!("The guest read {line:?}"))?;
        u64::from_str_radix(digits, 16).with_context(|| format!("The guest read {line:?}"))
    };
    Ok(register(3)? << 32 | register(2)?)
}

fn bytes_of(hexadecimal: &str) -> Result<Vec<u8>> {
    hexadecimal
        .trim()
        .as_bytes()
        .chunks(2)
        .map(|pair| {
            let digits = str::from_utf8(pair).context("Not hexadecimal")?;
            u8::from_str_radix(digits, 16).with_context(|| format!("{digits:?} is no byte"))
        })
        .collect()
}
