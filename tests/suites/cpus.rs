//! What guests see of their CPUs.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use instrumentation::table::Isa;
use kvm_ioctls::Kvm;
use lab::guest::{self, CpuidQuery, Program};
use lab::vmm::Machine;
use serde_json::json;

use crate::shell::Guest;
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "cpus",
    applies: Site::is_patched,
    trials: trials![leaves_tell_threads_cores_dies_and_packages],
};

/// What takes Linux.
pub const LINUX: Suite = Suite {
    name: "cpus",
    applies: |site| site.is_patched() && site.boots_quickly() && !site.is_shared(),
    trials: trials![
        linux_sees_the_topology_and_uses_what_kvm_offers,
        count_that_kvm_does_not_allow_is_refused,
    ],
};

/// How long a hundred vCPUs may take on one CPU of the host: a kernel that changes
/// its own code while it boots asks each of them to take notice.
const BOOT: Duration = Duration::from_secs(3600);

/// How many features KVM tells at most.
const MAX_ENTRIES: usize = 256;

fn leaves_tell_threads_cores_dies_and_packages(site: &Site) -> Result<()> {
    let mut queries = Vec::new();
    for (leaf, subleaves) in [(0, 1), (0xb, 3), (0x1f, 4), (0x8000_001e, 1)] {
        queries.extend((0..subleaves).map(|subleaf| CpuidQuery { leaf, subleaf }));
    }
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    fs::write(&kernel, guest::cpuid_reader(&queries))?;
    let mut machine = Machine::idle(&site.bin(), &dir)?;
    let topology = json!({
        "threads_per_core": 2, "cores_per_die": 3, "dies_per_package": 2, "packages": 1,
    });
    let config = json!({
        "cpus": {"boot_vcpus": 12, "max_vcpus": 12, "topology": topology},
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Off"},
    });
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    let bytes = guest::Program::report_writes(queries.len());
    let serial = machine.wait_for_bytes(bytes, site.tiny_deadline())?;
    let read = guest::readings(&serial, queries.len())?;
    // Bits below the next level's number, logical processors, and kind.
    let levels = |at: usize, count: usize| -> Vec<(u32, u32, u32)> {
        let of = |level: &guest::CpuidReading| (level.eax, level.ebx, level.ecx >> 8);
        read[at..at + count].iter().map(of).collect()
    };
    let cores = levels(1, 3);
    ensure!(
        cores == [(1, 2, 1), (4, 12, 2), (0, 0, 0)],
        "Leaf 0xb: {cores:x?}"
    );
    match site.isa() {
        Isa::Vmx => {
            let dies = levels(4, 4);
            ensure!(
                read[0].eax >= 0x1f && dies == [(1, 2, 1), (3, 6, 2), (4, 12, 5), (0, 0, 0)],
                "Leaf 0x1f of {:#x}: {dies:x?}",
                read[0].eax
            );
        }
        Isa::Svm => {
            let own = &read[8];
            ensure!(
                (own.eax, own.ebx, own.ecx) == (0, 0x100, 0x100),
                "Leaf 0x8000001e: {own:x?}"
            );
        }
    }
    Ok(())
}

fn count_that_kvm_does_not_allow_is_refused(site: &Site) -> Result<()> {
    let kvm = Kvm::new().context("Cannot open /dev/kvm")?;
    let limit = kvm.get_max_vcpus();
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    fs::write(&kernel, Program::new().halt())?;
    let machine = Machine::idle(&site.bin(), &dir)?;
    let config = json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": limit + 1},
        "payload": {"kernel": kernel},
        "serial": {"mode": "Null"},
        "console": {"mode": "Off"},
    });
    // Where KVM allows as many as there can ever be, the configuration is refused.
    let created = machine.api("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    let refused = match created.status {
        204 => machine.api("PUT", "/api/v1/vm.boot", None)?,
        _ => created,
    };
    ensure!(
        refused.status == 400 && refused.body.contains(&limit.to_string()),
        "{refused:?}"
    );
    Ok(())
}

/// Threads of a core, cores of a die and dies: five of each take three bits of an
/// APIC's id, so that the last of 125 is 292. It needs an x2APIC, and messages with
/// the extension of KVM.
const EACH: u32 = 5;
const VCPUS: u32 = EACH * EACH * EACH;

pub fn linux_counts_and_reaches_cpus_whose_ids_a_byte_has_no_room_for(site: &Site) -> Result<()> {
    // The script goes on once each CPU has had its NMI.
    let reached = format!(
        "awk '/NMI:/ {{for (cpu = 2; cpu <= {}; cpu++) if ($cpu > 0) n++; print n + 0}}' \
         /proc/interrupts",
        VCPUS + 1
    );
    let script = format!(
        "echo @last $(grep '^apicid' /proc/cpuinfo | tail -n 1)\n\
         echo @cpus $(nproc) $(cat /sys/devices/system/cpu/online)\n\
         until [ \"$({reached})\" = {VCPUS} ]; do sleep 1; done\n\
         dmesg | grep -E 'stall|lockup|BUG:|Call Trace' | head -5\n\
         echo @end; sleep 1000000"
    );
    let dir = site.fresh_dir()?;
    let initramfs = dir.join("initramfs");
    guest::initramfs(&site.base_initramfs(), &script, &initramfs)?;
    let topology = json!({
        "threads_per_core": EACH, "cores_per_die": EACH, "dies_per_package": EACH, "packages": 1,
    });
    let config = json!({
        "cpus": {"boot_vcpus": VCPUS, "max_vcpus": VCPUS, "topology": topology},
        "memory": {"size": 768 << 20},
        "payload": {
            "kernel": site.kernel(), "initramfs": initramfs,
            // What takes them all to stop takes longer here than the watchdog bears.
            "cmdline": "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable lpj=1000000 nowatchdog",
        },
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Off"},
    });
    let mut machine = Machine::idle(&site.bin(), &dir)?;
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    let start = Instant::now();
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    let cpus = machine.wait_for("@cpus ", BOOT)?;
    println!("{cpus}, {} s after its start", start.elapsed().as_secs());
    let last = machine.serial().text();
    ensure!(
        cpus.contains(&format!("@cpus {VCPUS} 0-{}", VCPUS - 1)) && last.contains(": 292"),
        "{last}"
    );
    machine.ch_remote_text(&["nmi"])?;
    machine.wait_for("@end", BOOT)?;
    let said = machine.serial().text();
    let complains = ["stall", "lockup", "BUG:", "Call Trace"]
        .iter()
        .any(|word| said.contains(word));
    ensure!(!complains, "{said}");
    machine.must("PUT", "/api/v1/vm.pause", None)?;
    let (stats, own) = (machine.stats()?, machine.debugfs_exits()?);
    let idle = stats.vcpus.iter().filter(|(totals, _)| totals.exits == 0);
    ensure!(
        stats.vcpus.len() == VCPUS as usize && stats.totals.exits == own && idle.count() == 0,
        "{} vCPUs with {} exits, {own} of KVM's",
        stats.vcpus.len(),
        stats.totals.exits
    );
    let finished = machine.shut_down()?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    Ok(())
}

fn linux_sees_the_topology_and_uses_what_kvm_offers(site: &Site) -> Result<()> {
    let topology = json!({
        "threads_per_core": 2, "cores_per_die": 3, "dies_per_package": 2, "packages": 2,
    });
    let mut guest = Guest::boot(
        site,
        json!({"cpus": {
            "boot_vcpus": 24, "max_vcpus": 24, "topology": topology, "max_phys_bits": 39,
        }}),
    )?;
    // Later series look for AMD's dies in a leaf that KVM does not have.
    let tells_dies = site.isa() == Isa::Vmx || site.runs_6_1();
    for (level, size) in [
        ("thread_siblings_list", 2),
        ("die_cpus_list", 6),
        ("package_cpus_list", 12),
    ] {
        if level == "die_cpus_list" && !tells_dies {
            continue;
        }
        let said = guest.run(&format!(
            "cat /sys/devices/system/cpu/cpu*/topology/{level} | sort -u"
        ))?;
        let seen: BTreeSet<String> = said.lines().map(|line| line.trim().to_owned()).collect();
        let expected: BTreeSet<String> = (0..24 / size)
            .map(|group| format!("{}-{}", group * size, group * size + size - 1))
            .collect();
        ensure!(seen == expected, "{level}: {seen:?}");
    }
    // Each of them is reached by the number of its APIC, which is not its own.
    guest.machine.ch_remote_text(&["nmi"])?;
    let nmis = "awk '/NMI:/ {for (cpu = 2; cpu <= 25; cpu++) if ($cpu > 0) n++; print n + 0}' /proc/interrupts";
    guest.run_until(nmis, "24")?;

    let widths = guest.run("grep -m1 'address sizes' /proc/cpuinfo")?;
    ensure!(widths.contains(": 39 bits physical"), "{widths}");

    // What KVM can do for a guest, as the host's tells it.
    let kvm = Kvm::new().context("Cannot open /dev/kvm")?;
    let supported = kvm
        .get_supported_cpuid(MAX_ENTRIES)
        .context("KVM tells no features")?;
    let features = supported
        .as_slice()
        .iter()
        .find(|leaf| leaf.function == 0x4000_0001)
        .context("KVM has no features of its own")?
        .eax;
    let said = guest.run("cpuid -1 -r -l 0x40000001 -s 0")?;
    let expected = format!("eax={features:#010x}");
    ensure!(said.contains(&expected), "Not {expected}: {said}");
    let clocks =
        guest.run("cat /sys/devices/system/clocksource/clocksource0/available_clocksource")?;
    ensure!(
        clocks.split_whitespace().any(|clock| clock == "kvm-clock"),
        "Clock sources: {clocks}"
    );
    let log = guest.run("dmesg")?;
    for used in [
        "kvm-clock: using sched offset",
        "x2apic",
        "TSC deadline timer available",
        "setup PV IPIs",
        "pv remote TLB flush",
    ] {
        ensure!(log.contains(used), "Linux does not say {used:?}:\n{log}");
    }
    Ok(())
}
