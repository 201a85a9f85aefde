//! A guest that raises exits of every kind it can, on 1, 2, 8 and 64 vCPUs: each
//! view counts the same, to the exit.

use anyhow::{Result, ensure};
use instrumentation::table::Isa;
use lab::guest::{ManyExits, Program, readings};
use lab::oracle::{ExitHistogram, same_exits};
use lab::vmm::Stats;

use crate::accounting::host_may_add;
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "many_exits",
    applies: Site::is_patched,
    trials: trials![
        every_kind_is_counted_to_the_exit_on_one_vcpu,
        every_kind_is_counted_to_the_exit_on_two_vcpus,
        every_kind_is_counted_to_the_exit_on_eight_vcpus,
    ],
};

/// As many vCPUs as there can be, where that is quick.
pub const ALL_VCPUS: Suite = Suite {
    name: "many_exits",
    applies: |site| site.is_patched() && site.boots_quickly(),
    trials: trials![every_kind_is_counted_to_the_exit_on_64_vcpus],
};

fn every_kind_is_counted_to_the_exit_on_one_vcpu(site: &Site) -> Result<()> {
    every_kind_is_counted(site, ManyExits::some(1, 4))
}

fn every_kind_is_counted_to_the_exit_on_two_vcpus(site: &Site) -> Result<()> {
    every_kind_is_counted(site, ManyExits::some(2, 3))
}

fn every_kind_is_counted_to_the_exit_on_eight_vcpus(site: &Site) -> Result<()> {
    every_kind_is_counted(site, ManyExits::some(8, 2))
}

fn every_kind_is_counted_to_the_exit_on_64_vcpus(site: &Site) -> Result<()> {
    every_kind_is_counted(site, ManyExits::some(64, 1))
}

fn every_kind_is_counted(site: &Site, work: ManyExits) -> Result<()> {
    let asked = ManyExits::asked(site.isa());
    let writes = Program::report_writes(asked.len());
    let histogram = ExitHistogram::start()?;
    let mut machine = site.boot_tiny_on(&work.image(site.isa())?, work.vcpus)?;
    let serial = machine.wait_for_bytes(writes, site.tiny_deadline())?;
    machine.wait_until_silent(site.tiny_deadline())?;
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let stats = machine.stats()?;

    // The views of the host.
    let traced = histogram.of_process(machine.pid())?;
    same_exits(&stats.occurred(), &traced)?;
    let own = machine.debugfs_exits()?;
    ensure!(
        stats.sum() == stats.totals && stats.totals.exits == own && stats.other.exits == 0,
        "Sum {:?}, total {:?}, KVM's own {own}",
        stats.sum(),
        stats.totals
    );
    ensure!(stats.vcpus.len() == work.vcpus as usize, "Not all vCPUs");
    for (totals, sum) in &stats.vcpus {
        ensure!(
            totals == sum && sum.exits > 0,
            "A vCPU's sum {sum:?}, its total {totals:?}"
        );
    }
    let json = machine.ch_remote_text(&["exit-stats", "--all", "--format", "json"])?;
    ensure!(
        Stats::read(&serde_json::from_str(&json)?)? == stats,
        "ch-remote reads other figures than REST gives"
    );

    // What the guest did.
    for (numbers, expected) in expected(site.isa(), &work, asked.len(), writes) {
        let counted: u64 = numbers.iter().map(|&number| stats.exits(number)).sum();
        let right = match expected {
            Expected::Exactly(count) => counted == count,
            Expected::ExactlyIfAtAll(count) => counted == count || counted == 0,
            Expected::AtLeast(count) => counted >= count,
        };
        ensure!(
            right,
            "Reasons {numbers:x?}: {counted} counted, expected {expected:?}; all: {:?}",
            stats.occurred()
        );
    }

    // What the guest read.
    let numbers = site.numbers();
    for (index, (&number, reading)) in asked
        .iter()
        .zip(readings(&serial, asked.len())?)
        .enumerate()
    {
        let enabled = stats.reasons.get(&number).is_some_and(|row| row.enabled);
        if !enabled {
            continue;
        }
        let read = u64::from(reading.ebx) << 32 | u64::from(reading.eax);
        let host = stats.exits(number);
        let later = match number {
            _ if number == numbers.cpuid => (asked.len() - 1 - index) as u64,
            _ if number == numbers.io => writes,
            // The others halt at their leisure.
            _ if number == numbers.hlt || host_may_add(site, number) => {
                ensure!(
                    host >= read,
                    "Reason {number:#x}: {read} in the guest, then {host}"
                );
                continue;
            }
            _ => 0,
        };
        ensure!(
            host == read + later,
            "Reason {number:#x}: the guest read {read} and raised {later} more; the host says {host}"
        );
    }
    Ok(())
}

/// What must be counted of a reason.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Exactly(u64),
    /// Not every CPU leaves the guest for it.
    ExactlyIfAtAll(u64),
    /// KVM or the guest's beginning adds to it.
    AtLeast(u64),
}

/// Reasons, of which KVM or the CPU may choose one or another, and how often
/// they occur together.
type Row = (&'static [u32], Expected);

fn expected(isa: Isa, work: &ManyExits, asked: usize, writes: u64) -> Vec<Row> {
    use Expected::{AtLeast, Exactly, ExactlyIfAtAll};
    let cpuids = Exactly(work.cpuids() + asked as u64);
    let io = AtLeast(work.all(2 * work.ports) + writes);
    let halts = AtLeast(work.all(work.halts) + u64::from(work.vcpus));
    let hypercalls = Exactly(work.all(work.hypercalls));
    let caches = Exactly(work.all(2 * work.caches));
    // An interrupt between KVM's letting go and the second try makes it three.
    let dr = AtLeast(work.all(work.dr));
    let xsetbv = work.all(work.xsetbv);
    let rdpmc = Exactly(work.all(work.rdpmc));
    let msrs = AtLeast(work.all(2 * work.msrs));
    let cr = AtLeast(work.all(2 * work.cr));
    match isa {
        Isa::Vmx => vec![
            (&[0], AtLeast(work.all(work.undefined + work.steps))),
            (&[10], cpuids),
            (&[12], halts),
            (&[13, 54], caches),
            (&[15], rdpmc),
            (&[18], hypercalls),
            (&[28], cr),
            (&[29], dr),
            (&[30], io),
            (&[31, 32], msrs),
            (&[48, 49], AtLeast(1)),
            (&[55], Exactly(xsetbv)),
        ],
        Isa::Svm => vec![
            (&[0x10, 0x65], cr),
            (&[0x37], dr),
            (&[0x41], Exactly(work.all(work.steps))),
            (&[0x46], Exactly(work.all(work.undefined))),
            (&[0x6f], rdpmc),
            (&[0x72], cpuids),
            (&[0x74], AtLeast(work.all(work.nmis))),
            // QEMU's TCG reports INVD as WBINVD, and lets XSETBV pass.
            (&[0x76, 0x89], caches),
            (&[0x78], halts),
            (&[0x7b], io),
            (&[0x7c], msrs),
            (&[0x81], hypercalls),
            (&[0x8d], ExactlyIfAtAll(xsetbv)),
            (&[0x400], AtLeast(1)),
        ],
    }
}
