//! Is every exit counted, once, under its reason?

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use instrumentation::table::Isa;
use lab::guest::{CpuidQuery, Instruction, Program};
use lab::oracle::{self, ExitHistogram, same_exits};
use lab::vmm::Machine;

use crate::evidence::mark;
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "accounting",
    applies: Site::is_patched,
    trials: trials![
        reasons_sum_to_the_total_and_to_kvms_own_exits,
        cycles_of_all_reasons_sum_to_their_total,
        each_reason_equals_the_tracepoint_to_the_exit,
        guest_readings_are_bracketed_by_host_readings,
        guests_total_is_the_sum_of_its_reasons,
        each_instruction_moves_its_own_reason_and_no_other,
        halted_guest_read_by_itself_and_by_the_host_agrees,
        sleep_is_kept_apart_from_work,
        reading_twice_gives_the_same_figures,
        reading_causes_no_exit,
        table_agrees_with_the_running_kernels_handlers,
    ],
};

fn reasons_sum_to_the_total_and_to_kvms_own_exits(site: &Site) -> Result<()> {
    let run = site.linux()?;
    let stats = &run.paused[0];
    ensure!(
        stats.sum().exits == stats.totals.exits && stats.totals.exits == run.debugfs,
        "Sum {}, total {}, KVM's own {}",
        stats.sum().exits,
        stats.totals.exits,
        run.debugfs
    );
    Ok(())
}

fn cycles_of_all_reasons_sum_to_their_total(site: &Site) -> Result<()> {
    let stats = &site.linux()?.paused[0];
    ensure!(
        stats.sum() == stats.totals,
        "Sum {:?}, total {:?}",
        stats.sum(),
        stats.totals
    );
    ensure!(stats.totals.cycles > 0, "No time was spent on any exit");
    for (totals, sum) in &stats.vcpus {
        ensure!(totals == sum, "A vCPU's sum {sum:?}, its total {totals:?}");
    }
    Ok(())
}

fn each_reason_equals_the_tracepoint_to_the_exit(site: &Site) -> Result<()> {
    let run = site.linux()?;
    let counted = run.paused[0].occurred();
    same_exits(&counted, &run.traced)?;
    ensure!(
        run.paused[0].other.exits == 0,
        "Exits without a number: {:?}",
        run.paused[0].other
    );
    Ok(())
}

fn guest_readings_are_bracketed_by_host_readings(site: &Site) -> Result<()> {
    let run = site.linux()?;
    for (index, reading) in run.guest.iter().enumerate() {
        // The last host reading that was over before the guest began, and the
        // first that began after the guest's figures had reached the console.
        let (begins, ends) = (mark(index, false), mark(index, true));
        let earlier = run
            .running
            .iter()
            .rev()
            .find(|(_, shown)| !shown.contains(&begins));
        let seen = run
            .running
            .iter()
            .position(|(_, shown)| shown.contains(&ends));
        let later = seen.and_then(|seen| run.running.get(seen + 1));
        let later = later.map_or(&run.paused[0], |(stats, _)| stats);
        for (&number, &(exits, _)) in &reading.reasons {
            let low = earlier.map_or(0, |(stats, _)| stats.exits(number));
            // What the host sees under a number without a handler, such as a
            // failed entry, is none of the guest's business.
            let enabled = later
                .reasons
                .get(&number)
                .is_some_and(|reason| reason.enabled);
            let low = if enabled { low } else { 0 };
            let high = later.exits(number);
            ensure!(
                low <= exits && exits <= high,
                "Reading {index}, reason {number}: {low}, then {exits} in the guest, then {high}"
            );
        }
        ensure!(
            reading.exits <= later.totals.exits && reading.cycles <= later.totals.cycles,
            "Reading {index}: the guest's totals {} and {} are ahead of the host's {:?}",
            reading.exits,
            reading.cycles,
            later.totals
        );
    }
    Ok(())
}

fn guests_total_is_the_sum_of_its_reasons(site: &Site) -> Result<()> {
    // One reason after the other, then the total. Two rounds: interrupts may
    // fall into a round, so the sum is held between the totals around it.
    let last = match site.isa() {
        Isa::Vmx => 85,
        Isa::Svm => 0xa6,
    };
    let mut numbers: Vec<u32> = (0..=last).collect();
    if site.isa() == Isa::Svm {
        numbers.extend(0x400..=0x403);
    }
    let total = CpuidQuery {
        leaf: 0x4fff_ffff,
        subleaf: 0,
    };
    let mut queries = vec![total];
    queries.extend(numbers.iter().map(|&subleaf| CpuidQuery {
        leaf: 0x4fff_fffd,
        subleaf,
    }));
    queries.push(total);
    let readings = site.ask(&queries)?;
    let sum: u64 = readings[1..=numbers.len()]
        .iter()
        .filter(|reading| reading.edx == 0)
        .map(|reading| u64::from(reading.eax))
        .sum();
    let (before, after) = (
        u64::from(readings[0].eax),
        u64::from(readings[queries.len() - 1].eax),
    );
    ensure!(
        before <= sum && sum <= after,
        "Total {before}, sum {sum}, total {after}"
    );
    Ok(())
}

/// A guest that ran to its final halt, with the tracepoint that saw it.
fn run_to_halt(site: &Site, program: Program, writes: u64) -> Result<(Machine, ExitHistogram)> {
    let histogram = ExitHistogram::start()?;
    let mut machine = site.boot_tiny(&program.halt())?;
    machine.wait_for_bytes(writes, site.tiny_deadline())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    Ok((machine, histogram))
}

fn each_instruction_moves_its_own_reason_and_no_other(site: &Site) -> Result<()> {
    let numbers = site.numbers();
    let hypercall = match site.isa() {
        Isa::Vmx => Instruction::Vmcall,
        Isa::Svm => Instruction::Vmmcall,
    };
    let program = Program::new()
        .repeat(Instruction::Cpuid, 301)
        .repeat(Instruction::In(0x80), 203)
        .repeat(Instruction::ReadMsr, 107)
        .repeat(Instruction::WriteMsr, 59)
        .repeat(hypercall, 31)
        .repeat(Instruction::Out(0x3f8), 17);
    let (machine, histogram) = run_to_halt(site, program, 17)?;
    let stats = machine.stats()?;
    let mut expected = BTreeMap::from([
        (numbers.cpuid, 301),
        (numbers.io, 203 + 17),
        (numbers.hypercall, 31),
        (numbers.hlt, 1),
    ]);
    *expected.entry(numbers.read_msr).or_default() += 107;
    *expected.entry(numbers.write_msr).or_default() += 59;
    for (number, expected) in expected {
        let counted = stats.exits(number);
        ensure!(
            counted == expected,
            "Reason {number}: {counted} counted, {expected} executed"
        );
    }
    let traced = histogram.of_process(machine.pid())?;
    same_exits(&stats.occurred(), &traced)?;
    ensure!(
        stats.totals.exits == machine.debugfs_exits()?,
        "Not KVM's own total"
    );
    Ok(())
}

fn halted_guest_read_by_itself_and_by_the_host_agrees(site: &Site) -> Result<()> {
    let numbers = site.numbers();
    let asked: Vec<u32> = site
        .table()
        .reasons
        .iter()
        .filter(|entry| entry.enabled)
        .map(|entry| entry.number)
        .collect();
    let queries: Vec<_> = asked
        .iter()
        .map(|&subleaf| CpuidQuery {
            leaf: 0x4fff_fffd,
            subleaf,
        })
        .collect();
    let writes = Program::report_writes(queries.len());
    let program = Program::new()
        .repeat(Instruction::In(0x80), 99)
        .repeat(Instruction::ReadMsr, 7)
        .ask(&queries)
        .report(queries.len());
    let (machine, _histogram) = run_to_halt(site, program, writes)?;
    let readings = lab::guest::readings(&machine.serial().bytes(), queries.len())?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let stats = machine.stats()?;
    for (index, (&number, reading)) in asked.iter().zip(&readings).enumerate() {
        let read = u64::from(reading.ebx) << 32 | u64::from(reading.eax);
        let host = stats.exits(number);
        // What the guest did after it had asked for this reason.
        let later = match number {
            _ if number == numbers.cpuid => (asked.len() - 1 - index) as u64,
            _ if number == numbers.io => writes,
            _ if number == numbers.hlt => 1,
            // Interrupts of the host, and memory that the report touches first.
            _ if host_may_add(site, number) => {
                ensure!(
                    host >= read,
                    "Reason {number}: {read} in the guest, then {host}"
                );
                continue;
            }
            _ => 0,
        };
        ensure!(
            host == read + later,
            "Reason {number}: the guest read {read} and raised {later} more; the host says {host}"
        );
    }
    Ok(())
}

/// Reasons that a guest does not control: interrupts and paging.
pub fn host_may_add(site: &Site, number: u32) -> bool {
    match site.isa() {
        Isa::Vmx => matches!(number, 0 | 1 | 7 | 48 | 49 | 52),
        Isa::Svm => matches!(number, 0x60 | 0x61 | 0x64 | 0x400),
    }
}

fn sleep_is_kept_apart_from_work(site: &Site) -> Result<()> {
    let hlt = site.numbers().hlt;
    let (machine, _histogram) = run_to_halt(site, Program::new().repeat(Instruction::Cpuid, 1), 0)?;
    std::thread::sleep(Duration::from_secs(1));
    // The halt is one long exit; pausing ends the sleep and closes it.
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let body = machine.must("GET", "/exit-stats", None)?.json()?;
    let stats = machine.stats()?;
    let Some(row) = stats.reasons.get(&hlt).map(|reason| reason.counters) else {
        bail!("There is no row for the halt");
    };
    let second = body["tsc_khz"].as_u64().unwrap_or(0) * 1000;
    ensure!(row.exits == 1, "{} halts", row.exits);
    ensure!(
        row.blocked >= second / 2 && row.cycles < second / 10,
        "A second is {second} ticks; the halt slept {} and worked {}",
        row.blocked,
        row.cycles
    );
    Ok(())
}

fn reading_twice_gives_the_same_figures(site: &Site) -> Result<()> {
    let run = site.linux()?;
    ensure!(
        run.paused[0] == run.paused[1],
        "Two readings of a paused machine differ"
    );
    ensure!(
        run.paused[0] == run.by_ch_remote,
        "ch-remote reads other figures than REST gives"
    );
    Ok(())
}

fn reading_causes_no_exit(site: &Site) -> Result<()> {
    let (machine, _histogram) = run_to_halt(site, Program::new().repeat(Instruction::Cpuid, 9), 0)?;
    let before = machine.debugfs_exits()?;
    for _ in 0..50 {
        machine.stats()?;
    }
    let after = machine.debugfs_exits()?;
    ensure!(
        before == after,
        "Fifty readings cost {} exits",
        after - before
    );
    ensure!(
        machine.stats()?.totals.exits == before,
        "REST gives another total than KVM"
    );
    Ok(())
}

fn table_agrees_with_the_running_kernels_handlers(site: &Site) -> Result<()> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    // What SVM got handlers for since 6.12. KVM itself judges a reason by the table
    // that it has; ours is what a reader without a kernel of that age knows.
    let newer: &[u32] = match site.isa() {
        Isa::Svm if release.starts_with("7.") => &[0x88, 0xa5, 0xa6],
        _ => &[],
    };
    let mut running = oracle::handled_reasons(site.isa())?;
    running.retain(|number| !newer.contains(number));
    let encrypted = oracle::serves_encrypted_guests()?;
    let ours: Vec<u32> = site
        .table()
        .reasons
        .iter()
        .filter(|entry| entry.enabled)
        .map(|entry| entry.number)
        // VMGEXIT cannot occur without them, so that it reads 0 either way.
        .filter(|&number| encrypted || site.isa() != Isa::Svm || number != 0x403)
        .collect();
    let only = |a: &[u32], b: &[u32]| -> Vec<u32> {
        a.iter()
            .copied()
            .filter(|number| !b.contains(number))
            .collect()
    };
    ensure!(
        running == ours,
        "Only in the kernel: {:?}; only in the table: {:?}",
        only(&running, &ours),
        only(&ours, &running)
    );
    Ok(())
}
