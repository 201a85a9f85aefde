//! Exits that KVM makes up: without unrestricted guest, VMX cannot run a guest
//! whose segments do not fit its mode, so KVM says "reason 33" to itself and
//! emulates. No VM entry was tried, so slot 33 is for hardware's own.

use anyhow::{Context, Result, ensure};
use instrumentation::table::Isa;
use lab::guest::{CpuidQuery, CpuidReading, Program, emulated, readings};
use lab::oracle::{DebugfsTable, ExitHistogram, same_exits};
use lab::vmm::Stats;

use crate::modules::{Swapped, can_be_swapped};
use crate::site::Site;
use crate::time::life;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "emulation",
    applies: |site| can_be_swapped(site) && site.isa() == Isa::Vmx,
    trials: trials![
        made_up_exits_are_counted_apart_from_reason_33,
        five_places_are_the_life_of_a_vcpu_that_is_emulated,
    ],
};

/// CPUIDs and INs that are emulated.
const TIMES: u32 = 200;
const INVALID_GUEST_STATE: u32 = 33;

fn query(leaf: u32) -> CpuidQuery {
    CpuidQuery {
        leaf,
        subleaf: INVALID_GUEST_STATE,
    }
}

/// Our kvm-intel with unrestricted guest off, as on the first CPUs with VMX.
fn restricted(site: &Site) -> Result<Swapped<'_>> {
    let swapped = Swapped::new(site, &[], &["unrestricted_guest=0"])?;
    let path = "/sys/module/kvm_intel/parameters/unrestricted_guest";
    let value = std::fs::read_to_string(path).with_context(|| format!("Cannot read {path}"))?;
    ensure!(value.trim() == "N", "unrestricted_guest is {value}");
    Ok(swapped)
}

fn made_up_exits_are_counted_apart_from_reason_33(site: &Site) -> Result<()> {
    let _back = restricted(site)?;
    let asked = [
        query(0x4fff_fffd),
        query(0x4fff_fffc),
        query(0x4fff_fffb),
        query(0x4fff_ffff),
    ];
    let writes = Program::report_writes(2 * asked.len());
    let histogram = ExitHistogram::start()?;
    let mut machine = site.boot_tiny(&emulated(TIMES, &asked)?)?;
    let serial = machine.wait_for_bytes(writes, site.tiny_deadline())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let stats = machine.stats()?;

    // The host: what hardware reported, the tracepoint saw; the rest KVM made up.
    let traced = histogram.of_process(machine.pid())?;
    same_exits(&stats.occurred(), &traced)?;
    let own = machine.debugfs_exits()?;
    let made_up = own - traced.values().sum::<u64>();
    ensure!(
        stats.other.exits == made_up && stats.totals.exits == own && stats.sum() == stats.totals,
        "KVM counts {own}, {made_up} of them made up; ours: {:?}, {:?} of them in no reason",
        stats.totals,
        stats.other
    );
    // Each IN goes out to user space, and KVM makes up the next exit to go on.
    ensure!(
        made_up >= TIMES.into() && stats.other.cycles > 0 && stats.other.userspace > 0,
        "{TIMES} times to user space and back: {:?}",
        stats.other
    );
    ensure!(
        stats.exits(site.numbers().cpuid) == asked.len() as u64,
        "What is emulated does not exit: {:?}",
        stats.occurred()
    );
    let row = stats.reasons.get(&INVALID_GUEST_STATE);
    ensure!(
        row.is_some_and(|row| row.counters.exits == 0 && !row.enabled),
        "Hardware never said 33: {row:?}"
    );
    let table = DebugfsTable::of_process(machine.pid())?;
    ensure!(table.exits == own && table.own == own, "{table:?}");
    let json = machine.ch_remote_text(&["exit-stats", "--all", "--format", "json"])?;
    ensure!(
        Stats::read(&serde_json::from_str(&json)?)? == stats,
        "ch-remote reads other figures than REST gives"
    );

    // The guest, asking the emulator and then the processor.
    let zero = CpuidReading {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    };
    let mut totals = Vec::new();
    for answers in readings(&serial, 2 * asked.len())?.chunks_exact(asked.len()) {
        ensure!(
            answers[0] == zero && answers[1] == zero,
            "Reason 33 has no handler: {answers:x?}"
        );
        ensure!(
            answers[2].ebx.to_le_bytes() == *b"VMX\0",
            "What this is: {answers:x?}"
        );
        let total = answers[3];
        ensure!(
            total
                == CpuidReading {
                    eax: total.eax,
                    ..zero
                },
            "The total: {total:x?}"
        );
        totals.push(u64::from(total.eax));
    }
    ensure!(
        u64::from(TIMES) <= totals[0] && totals[0] < totals[1] && totals[1] + writes < own,
        "{made_up} made up, {own} in all; the guest read {totals:?}, then wrote {writes} bytes"
    );
    Ok(())
}

fn five_places_are_the_life_of_a_vcpu_that_is_emulated(site: &Site) -> Result<()> {
    let _back = restricted(site)?;
    let table = life(site, &emulated(u32::MAX, &[query(0x4fff_ffff)])?)?;
    ensure!(
        table.userspace > table.guest && table.cycles > table.guest && table.blocked == 0,
        "It was never in the guest for long: {table:?}"
    );
    Ok(())
}
