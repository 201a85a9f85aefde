//! A VMM that knows nothing of us, the distribution's QEMU: its guest reads
//! the leaves, its own command shows the arrays, and debugfs has a table.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use instrumentation::table::{ExitSlot, STATS_SLOTS};
use lab::guest::{self, CpuidQuery, CpuidReading, Instruction, Program, readings};
use lab::oracle::{
    DebugfsRow, DebugfsTable, ExitHistogram, ReturnCount, debugfs_vms, same_exits,
    wait_until_silent,
};
use lab::peer::{Figures, Peer, PeerSpec, in_kvms_order};

use crate::evidence::reached_user_space;
use crate::site::{Site, skip};
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "any_vmm",
    applies: Site::is_patched,
    trials: trials![
        guest_of_qemu_reads_its_own_exits_on_any_cpu_model,
        query_stats_and_debugfs_show_what_the_tracepoint_counts,
        signals_that_the_kernel_outside_kvm_counts_arrive_in_their_own_figure,
        latency_is_switched_and_read_in_debugfs_for_a_vm_of_qemu,
    ],
};

/// What takes Linux to show.
pub const LINUX: Suite = Suite {
    name: "any_vmm",
    applies: |site| site.is_patched() && site.boots_quickly(),
    trials: trials![linux_on_two_vcpus_of_qemu_reads_what_its_host_counts],
};

/// What QEMU's own command calls our arrays, in the order of a row's figures.
const ARRAYS: [&str; 5] = [
    "exits_by_reason",
    "exit_cycles_by_reason",
    "exit_blocked_cycles_by_reason",
    "exit_userspace_cycles_by_reason",
    "exit_preempted_cycles_by_reason",
];

/// CPUs of the host's vendor and of the other one: KVM answers a leaf that it
/// has no entry for by the vendor that the guest sees.
const MODELS: [&str; 3] = [
    "host",
    "qemu64,vendor=AuthenticAMD",
    "qemu64,vendor=GenuineIntel",
];

/// The CPU of a Linux guest. The emulator of the SVM host does not intercept XSETBV, so KVM
/// never learns which state the guest enabled, and by the CPUID table that QEMU sets its
/// size is wrong for ever. Linux says "XSAVE consistency problem" and does without; 7.3
/// dies of it, because `x86_task_fpu()` is NULL that early. On the distribution's modules,
/// too.
const LINUX_MODEL: &str = "host,xsave=off";

/// A folder for QEMU, where there is QEMU.
fn dir(site: &Site) -> Result<PathBuf> {
    if !Peer::is_here() {
        skip("this host has no QEMU for microvm")?;
    }
    site.fresh_dir()
}

fn tiny(site: &Site, cpu: &str, image: &[u8]) -> Result<Peer> {
    let dir = dir(site)?;
    let kernel = dir.join("guest.elf");
    fs::write(&kernel, image).context("Cannot write the guest")?;
    let spec = PeerSpec {
        kernel: &kernel,
        linux: None,
        cpu,
        vcpus: 1,
    };
    Peer::boot(&dir, &spec)
}

fn guest_of_qemu_reads_its_own_exits_on_any_cpu_model(site: &Site) -> Result<()> {
    for cpu in MODELS {
        reads_its_own_exits(site, cpu).with_context(|| format!("CPU model {cpu}"))?;
    }
    Ok(())
}

fn reads_its_own_exits(site: &Site, cpu: &str) -> Result<()> {
    let cpuid = site.numbers().cpuid;
    let unhandled = site.table().reasons.iter().find(|entry| !entry.enabled);
    let unhandled = unhandled.context("KVM handles everything")?.number;
    let query = |leaf, subleaf| CpuidQuery { leaf, subleaf };
    let queries = [
        query(0x4fff_fffb, 0),
        query(0x4fff_fffd, cpuid),
        query(0x4fff_ffff, 0),
        query(0x4fff_fffe, 0),
        query(0x4fff_fffc, cpuid),
        query(0x4fff_fffd, 0x1000a),
        query(0x4fff_fffd, unhandled),
        query(0x4fff_fffd, cpuid),
    ];
    let program = Program::new()
        .repeat(Instruction::Cpuid, 301)
        .ask(&queries)
        .report(queries.len());
    let mut peer = tiny(site, cpu, &program.halt())?;
    let bytes = Program::report_writes(queries.len());
    let serial = peer.wait_for_bytes(bytes, site.tiny_deadline())?;
    wait_until_silent(peer.pid(), site.tiny_deadline())?;
    let host = DebugfsTable::of_process(peer.pid())?;

    let [
        info,
        first,
        total,
        cycles,
        own_cycles,
        undefined,
        not_enabled,
        last,
    ] = readings(&serial, queries.len())?[..]
    else {
        unreachable!("as many answers as queries");
    };
    let wide = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    ensure!(
        (info.eax, info.ebx, info.ecx) == (1, site.isa().signature(), 1) && info.edx > 0,
        "What this is: {info:x?}"
    );
    ensure!(
        first.eax > 301 && last.eax == first.eax + queries.len() as u32 - 2,
        "CPUIDs: {first:x?}, then {last:x?}"
    );
    ensure!(
        u64::from(last.eax) == host.exits_of(cpuid),
        "The guest's last CPUID reads {}, its host counts {}",
        last.eax,
        host.exits_of(cpuid)
    );
    let (total, cycles) = (wide(total.ebx, total.eax), wide(cycles.ebx, cycles.ecx));
    ensure!(
        u64::from(first.eax) < total && total < host.exits,
        "{total} exits in the guest, {host:?}"
    );
    let own_cycles = wide(own_cycles.ebx, own_cycles.ecx);
    ensure!(
        0 < own_cycles && own_cycles < cycles && cycles < host.cycles,
        "{own_cycles} of {cycles} ticks in the guest, {host:?}"
    );
    let answer = |edx| CpuidReading {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx,
    };
    ensure!(
        undefined == answer(u32::MAX) && not_enabled == answer(0),
        "Undefined: {undefined:x?}; not enabled: {not_enabled:x?}"
    );
    Ok(())
}

/// A guest that did a little of several kinds and halted; its vCPU is stopped.
fn stopped(site: &Site) -> Result<(Peer, ExitHistogram)> {
    let program = Program::new()
        .repeat(Instruction::Cpuid, 301)
        .repeat(Instruction::In(0x80), 203)
        .repeat(Instruction::WriteMsr, 59)
        .report(0);
    let histogram = ExitHistogram::start()?;
    let mut peer = tiny(site, MODELS[0], &program.halt())?;
    peer.wait_for_bytes(Program::report_writes(0), site.tiny_deadline())?;
    wait_until_silent(peer.pid(), site.tiny_deadline())?;
    peer.stop()?;
    Ok((peer, histogram))
}

fn query_stats_and_debugfs_show_what_the_tracepoint_counts(site: &Site) -> Result<()> {
    let (mut peer, histogram) = stopped(site)?;
    let schemas = peer.query_stats_schemas()?;
    for (array, unit) in ARRAYS
        .iter()
        .zip([None, Some("cycles"), Some("cycles"), Some("cycles")])
    {
        let schema = &schemas[*array];
        ensure!(
            schema["type"] == "linear-histogram"
                && schema["bucket-size"] == 1
                && schema["unit"].as_str() == unit,
            "{array}: {schema}"
        );
    }
    ensure!(
        schemas["guest_cycles"]["type"] == "cumulative"
            && schemas["guest_cycles"]["unit"] == "cycles",
        "guest_cycles: {}",
        schemas["guest_cycles"]
    );

    let vcpus = peer.query_stats()?;
    let table = DebugfsTable::of_process(peer.pid())?;
    ensure!(vcpus.len() == 1, "{} vCPUs", vcpus.len());
    ensure!(table.isa == site.isa().as_str().to_uppercase(), "{table:?}");
    histograms_come_last_bucket_first(&vcpus[0])?;
    equal(site, &vcpus, &table)?;

    let traced = histogram.of_process(peer.pid())?;
    let counted = occurred(&table);
    same_exits(&counted, &traced)?;
    let numbers = site.numbers();
    ensure!(
        table.exits_of(numbers.hlt) >= 1
            && table.exits_of(numbers.cpuid) >= 301
            && table.exits_of(numbers.io) >= 203 + Program::report_writes(0)
            && table.exits_of(numbers.write_msr) >= 59,
        "Not what the guest did: {table:?}"
    );
    Ok(())
}

/// The kernel's image counts these itself, in KVM's structure as it was when the
/// image was built: our members must not have moved anything that it writes to.
fn signals_that_the_kernel_outside_kvm_counts_arrive_in_their_own_figure(
    site: &Site,
) -> Result<()> {
    const EINTR: i32 = -4;
    let signals = ReturnCount::start("xfer_to_guest_mode_handle_work", EINTR)?;
    let (mut peer, _histogram) = stopped(site)?;
    let counted = signals.of_process(peer.pid())?;
    let figures = peer.query_stats()?.pop().context("There is no vCPU")?;
    ensure!(
        counted > 0 && figures["signal_exits"] == counted,
        "{counted} returns for a signal, KVM's figure is {}",
        figures["signal_exits"]
    );
    Ok(())
}

/// Holds QEMU's figures, summed over vCPUs, against the table: each of a
/// reason's four figures, the time in the guest, KVM's own count.
fn equal(site: &Site, vcpus: &[Figures], table: &DebugfsTable) -> Result<()> {
    let mut sums = vec![[0; ARRAYS.len()]; STATS_SLOTS];
    let (mut own, mut guest) = (0, 0);
    for figures in vcpus {
        for (column, array) in ARRAYS.iter().enumerate() {
            let value = figures.get(*array).context("An array is missing")?;
            let buckets = in_kvms_order(value).with_context(|| (*array).to_owned())?;
            ensure!(
                buckets.len() == STATS_SLOTS,
                "{array} has {} elements",
                buckets.len()
            );
            for (sum, bucket) in sums.iter_mut().zip(buckets) {
                sum[column] += bucket;
            }
        }
        own += figures["exits"].as_u64().context("exits is no number")?;
        guest += figures["guest_cycles"]
            .as_u64()
            .context("No guest_cycles")?;
    }
    let known = site.table();
    let rows = sums
        .into_iter()
        .enumerate()
        .filter(|(_, figures)| figures.iter().any(|&figure| figure > 0))
        .map(|(slot, figures)| {
            let reason = known.reason_at(ExitSlot(slot));
            let (number, symbol, handled) = match reason {
                Some(entry) => (Some(entry.number), entry.symbol, entry.enabled),
                None => (None, "OTHER", false),
            };
            DebugfsRow {
                number,
                symbol: symbol.to_owned(),
                handled,
                figures,
            }
        })
        .collect::<Vec<_>>();
    ensure!(
        rows == table.rows,
        "QEMU shows {rows:?}, debugfs {:?}",
        table.rows
    );
    ensure!(
        (own, guest) == (table.own, table.guest),
        "QEMU shows {own} exits and {guest} ticks in the guest, debugfs {} and {}",
        table.own,
        table.guest
    );
    let mut sum = [0; ARRAYS.len()];
    for row in rows {
        for (sum, figure) in sum.iter_mut().zip(row.figures) {
            *sum += figure;
        }
    }
    ensure!(
        sum == [
            table.exits,
            table.cycles,
            table.blocked,
            table.userspace,
            table.preempted,
        ] && sum[0] == own,
        "The sums of {table:?} are {sum:?}, {own} exits are KVM's own"
    );
    Ok(())
}

/// Shows on KVM's own histogram of halts that QEMU's order is QEMU's doing: a
/// bucket K holds waits of 2^(K-1) nanoseconds up to twice that, and QEMU also
/// gives their sum.
fn histograms_come_last_bucket_first(figures: &Figures) -> Result<()> {
    let waited = figures["halt_wait_ns"]
        .as_u64()
        .context("No halt_wait_ns")?;
    let buckets = in_kvms_order(&figures["halt_wait_hist"])?;
    let waits: u64 = buckets.iter().sum();
    let highest = buckets
        .iter()
        .rposition(|&count| count > 0)
        .context("The guest never waited")?;
    ensure!(
        waited >= 1 << highest >> 1 && waited < waits << highest,
        "{waits} waits of {waited} ns in all, and the highest bucket is {highest} of {buckets:?}"
    );
    Ok(())
}

fn occurred(table: &DebugfsTable) -> BTreeMap<u32, u64> {
    table
        .rows
        .iter()
        .filter(|row| row.figures[0] > 0)
        .filter_map(|row| Some((row.number?, row.figures[0])))
        .collect()
}

fn latency_is_switched_and_read_in_debugfs_for_a_vm_of_qemu(site: &Site) -> Result<()> {
    let cpuid = site.numbers().cpuid;
    let mut peer = tiny(site, MODELS[0], &Program::new().report(0).ask_for_ever())?;
    peer.wait_for_bytes(Program::report_writes(0), site.tiny_deadline())?;
    let file = debugfs_vms(peer.pid())?
        .first()
        .context("QEMU has no VM")?
        .join("exit_stats_latency");
    let exits = || Ok::<_, anyhow::Error>(DebugfsTable::of_process(peer.pid())?.exits_of(cpuid));
    ensure!(
        fs::read_to_string(&file)? == "latency off\n",
        "It is on in a new VM"
    );
    let before = exits()?;
    fs::write(&file, "1").context("Cannot switch it on")?;
    let after = exits()?;
    sleep(Duration::from_millis(300));
    peer.stop()?;
    let last = DebugfsTable::of_process(peer.pid())?.exits_of(cpuid);
    let text = fs::read_to_string(&file)?;
    let row = text
        .strip_prefix("latency on\n")
        .context("It is not on")?
        .lines()
        .find(|line| line.starts_with(&format!("{cpuid:#x} CPUID ")))
        .with_context(|| format!("There is no CPUID in {text:?}"))?;
    let recorded: u64 = row
        .split_whitespace()
        .skip(2)
        .map(|pair| {
            let (_, count) = pair.rsplit_once(':').context("A bucket without a count")?;
            count
                .parse::<u64>()
                .context("A bucket's count is no number")
        })
        .sum::<Result<u64>>()?;
    // The exit that was open then was seen in part, the last one is open still.
    ensure!(
        recorded > 0 && last - after <= recorded + 2 && recorded <= last - before,
        "{recorded} recorded in {row:?}; {before} exits before it was on, {after} after, {last} in all"
    );
    Ok(())
}

fn linux_on_two_vcpus_of_qemu_reads_what_its_host_counts(site: &Site) -> Result<()> {
    let cpuid = site.numbers().cpuid;
    let script = format!(
        "echo '@reading begins'; exit-stats --json --all; echo '@reading ends'\n\
         cpuid -1 -r -l 0x4ffffffd -s {cpuid} | grep 0x4ffffffd\n\
         cpuid -1 -r -l 0x4ffffffd -s 0x1000a | grep 0x4ffffffd\n\
         echo '@guest ready'\n\
         sleep 1000\n"
    );
    let dir = dir(site)?;
    let initramfs = dir.join("initramfs");
    guest::initramfs(&site.base_initramfs(), &script, &initramfs)?;
    let histogram = ExitHistogram::start()?;
    let spec = PeerSpec {
        kernel: &site.kernel(),
        linux: Some((&initramfs, lab::study::CMDLINE)),
        cpu: LINUX_MODEL,
        vcpus: 2,
    };
    let mut peer = Peer::boot(&dir, &spec)?;
    // The host's last reading before the guest begins its own.
    let deadline = Instant::now() + site.linux_deadline();
    let mut earlier = DebugfsTable::default();
    loop {
        let table = DebugfsTable::of_process(peer.pid())?;
        if peer.serial().text().contains("@reading begins") {
            break;
        }
        earlier = table;
        ensure!(
            Instant::now() < deadline,
            "The guest does not read; {}\n{}",
            peer.stderr(),
            peer.serial().tail()
        );
        sleep(Duration::from_millis(50));
    }
    peer.wait_for("@guest ready", site.linux_deadline())?;
    peer.stop()?;
    let serial = peer.serial().text();
    ensure!(reached_user_space(&serial), "Linux did not boot: {serial}");

    let table = DebugfsTable::of_process(peer.pid())?;
    let vcpus = peer.query_stats()?;
    ensure!(
        vcpus.len() == 2 && table.vcpus == 2,
        "{} vCPUs for QEMU, {} in debugfs",
        vcpus.len(),
        table.vcpus
    );
    equal(site, &vcpus, &table)?;
    let (counted, traced) = (occurred(&table), histogram.of_process(peer.pid())?);
    same_exits(&counted, &traced)?;

    let (_, rest) = serial.split_once("@reading begins").context("No reading")?;
    let (json, rest) = rest.split_once("@reading ends").context("No end")?;
    let reading: serde_json::Value = serde_json::from_str(json.trim())
        .with_context(|| format!("The guest's reader printed {json:?}"))?;
    let rows = reading["reasons"].as_array().context("No reasons")?;
    for row in rows {
        let number = row["number"].as_u64().context("No number")? as u32;
        let exits = row["exits"].as_u64().context("No exits")?;
        let (low, high) = (earlier.exits_of(number), table.exits_of(number));
        ensure!(
            low <= exits && exits <= high,
            "Reason {number:#x}: {low}, then {exits} in the guest, then {high}"
        );
    }
    ensure!(rows.len() > 5, "The guest reads {} reasons", rows.len());
    let lines: Vec<&str> = rest
        .lines()
        .filter(|line| line.contains("0x4ffffffd"))
        .collect();
    let [known, undefined] = lines[..] else {
        anyhow::bail!("Debian's cpuid shows {lines:?}");
    };
    ensure!(
        undefined.contains("edx=0xffffffff") && known.contains("edx=0x00000000"),
        "Debian's cpuid shows {lines:?}"
    );
    Ok(())
}
