//! Guest memory: what the host backs it with, and how it comes back.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::guest::{Instruction, Program};
use lab::vmm::Machine;
use serde_json::{Value, json};

use crate::shell::{Guest, STEP_TIMEOUT};
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "memory",
    applies: Site::tries_devices,
    trials: trials![
        memory_is_mapped_as_asked,
        huge_pages_come_from_the_pool_and_go_back,
        memory_that_the_host_does_not_have_is_refused_with_the_reason,
        linux_runs_on_huge_pages_with_a_balloon,
        memory_beyond_4_gib_is_the_guests,
        balloon_gives_memory_back_and_lets_go_when_the_guest_needs_it,
        free_pages_go_back_to_the_host,
    ],
};

const SIZE: u64 = 64 << 20;
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// An idle VMM that was told of a guest with this memory, which writes a byte
/// and halts.
fn created(site: &Site, memory: &Value) -> Result<Machine> {
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    fs::write(
        &kernel,
        Program::new().repeat(Instruction::Out(0x3f8), 1).halt(),
    )?;
    let machine = Machine::idle(&site.bin(), &dir)?;
    let config = json!({
        "memory": memory,
        "payload": {"kernel": kernel},
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Off"},
    });
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    Ok(machine)
}

fn booted(site: &Site, memory: &Value) -> Result<Machine> {
    let mut machine = created(site, memory)?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    machine.wait_for_bytes(1, site.tiny_deadline())?;
    Ok(machine)
}

/// The mapping of so many bytes in a process, as the kernel describes it.
struct Mapping(String);

impl Mapping {
    fn of(machine: &Machine, size: u64) -> Result<Mapping> {
        let maps = fs::read_to_string(format!("/proc/{}/smaps", machine.pid()))?;
        let wanted = format!("{} kB", size >> 10);
        let mut found = String::new();
        let mut is_wanted = false;
        let mut head = "";
        for line in maps.lines() {
            match line.split_once(':') {
                Some(("Size", value)) => {
                    is_wanted = value.trim() == wanted;
                    if is_wanted {
                        found = format!("{head}\n");
                    }
                }
                Some((name, _)) if !name.contains(' ') => {}
                _ => {
                    is_wanted = false;
                    head = line;
                }
            }
            if is_wanted {
                found.push_str(line);
                found.push('\n');
            }
        }
        ensure!(!found.is_empty(), "No mapping of {wanted} in\n{maps}");
        Ok(Mapping(found))
    }

    fn kib(&self, name: &str) -> Result<u64> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
            .with_context(|| format!("No {name} in\n{}", self.0))
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix("VmFlags:"))
            .is_some_and(|flags| flags.split_whitespace().any(|word| word == flag))
    }
}

fn memory_is_mapped_as_asked(site: &Site) -> Result<()> {
    // Flags of VmFlags in proc(5): hg and mg are advice, sh is shared.
    let cases = [
        (json!({}), [true, false, false], false),
        (json!({"thp": false}), [false, false, false], false),
        (json!({"mergeable": true}), [true, true, false], false),
        (json!({"prefault": true}), [true, false, false], true),
        (json!({"shared": true}), [true, false, true], false),
        (
            json!({"shared": true, "thp": false, "prefault": true, "reserve": true}),
            [false, false, true],
            true,
        ),
    ];
    for (mut memory, flags, is_full) in cases {
        memory["size"] = json!(SIZE);
        let machine = booted(site, &memory)?;
        let mapping = Mapping::of(&machine, SIZE)?;
        let seen = ["hg", "mg", "sh"].map(|flag| mapping.has_flag(flag));
        let resident = mapping.kib("Rss")? << 10;
        ensure!(
            seen == flags && (resident == SIZE) == is_full && (is_full || resident < SIZE / 4),
            "{memory}: hg, mg, sh {seen:?}, not {flags:?}; {resident} bytes are there:\n{}",
            mapping.0
        );
        ensure!(
            mapping.0.contains("memfd:guest-ram") == flags[2],
            "{memory}: {}",
            mapping.0
        );
    }
    Ok(())
}

/// A pool of huge pages, given back when it goes.
struct Pool;

impl Pool {
    fn of(pages: u64) -> Result<Pool> {
        fs::write(format!("{POOL}/nr_hugepages"), pages.to_string())?;
        let pool = Pool;
        ensure!(pool.count("free_hugepages")? == pages, "No room for a pool");
        Ok(pool)
    }

    fn count(&self, name: &str) -> Result<u64> {
        let path = Path::new(POOL).join(name);
        let text = fs::read_to_string(&path)?;
        text.trim()
            .parse()
            .with_context(|| format!("{} says {text:?}", path.display()))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::write(format!("{POOL}/nr_hugepages"), "0");
    }
}

fn huge_pages_come_from_the_pool_and_go_back(site: &Site) -> Result<()> {
    const PAGES: u64 = SIZE >> 21;
    let pool = Pool::of(PAGES + 8)?;
    for (more, touched) in [
        (json!({}), 1..PAGES),
        (
            json!({"hugepage_size": 2 << 20, "prefault": true}),
            PAGES..PAGES + 1,
        ),
        (json!({"shared": true}), 1..PAGES),
        (json!({"shared": true, "prefault": true}), PAGES..PAGES + 1),
    ] {
        let mut memory = json!({"size": SIZE, "hugepages": true});
        if let (Some(memory), Value::Object(more)) = (memory.as_object_mut(), more) {
            memory.extend(more);
        }
        let machine = booted(site, &memory)?;
        let mapping = Mapping::of(&machine, SIZE)?;
        ensure!(mapping.kib("KernelPageSize")? == 2048, "{}", mapping.0);
        let taken = PAGES + 8 - pool.count("free_hugepages")?;
        let held = taken + pool.count("resv_hugepages")?;
        // All of them are the guest's from the start, touched or not.
        ensure!(
            touched.contains(&taken) && held == PAGES,
            "{memory}: {taken} pages of the pool are taken, {held} are held"
        );
        machine.must("PUT", "/api/v1/vm.delete", None)?;
        let free = pool.count("free_hugepages")?;
        ensure!(free == PAGES + 8, "{memory}: {free} are free afterwards");
    }
    Ok(())
}

fn memory_that_the_host_does_not_have_is_refused_with_the_reason(site: &Site) -> Result<()> {
    let pool = Pool::of(8)?;
    for (memory, reason) in [
        (json!({"size": SIZE, "hugepages": true}), "huge pages"),
        (
            json!({"size": SIZE, "hugepages": true, "shared": true}),
            "huge pages",
        ),
        (
            json!({"size": SIZE, "hugepages": true, "hugepage_size": 8 << 20}),
            "huge pages",
        ),
        (
            json!({"size": 0, "zones": [{"id": "a", "size": SIZE, "host_numa_node": 5}]}),
            "NUMA node 5",
        ),
        (
            json!({"size": 0, "zones": [{"id": "a", "size": SIZE, "file": "/none/such"}]}),
            "/none/such",
        ),
        (json!({"size": 1u64 << 46}), "physical address bits"),
    ] {
        let machine = created(site, &memory)?;
        let answer = machine.api("PUT", "/api/v1/vm.boot", None)?;
        ensure!(
            answer.status >= 400 && answer.body.contains(reason),
            "{memory} gave {}: {}",
            answer.status,
            answer.body
        );
        // And the VMM can boot something else.
        machine.must("GET", "/api/v1/vmm.ping", None)?;
    }
    ensure!(pool.count("free_hugepages")? == 8, "Some are still held");
    Ok(())
}

fn linux_runs_on_huge_pages_with_a_balloon(site: &Site) -> Result<()> {
    const PAGES: u64 = 128;
    let pool = Pool::of(PAGES)?;
    let mut guest = Guest::boot(
        site,
        json!({
            "memory": {"size": PAGES << 21, "hugepages": true, "shared": true},
            "balloon": {"size": 0},
        }),
    )?;
    guest.run("dd if=/dev/zero of=/t/fill bs=1M count=64 2>/dev/null; rm /t/fill")?;
    let before = pool.count("free_hugepages")?;
    balloon_of(&guest, PAGES << 21, 64 << 20)?;
    balloon_of(&guest, PAGES << 21, 0)?;
    let fill = "yes | head -c 67108864 >/t/fill; md5sum </t/fill | cut -d' ' -f1";
    let sum = guest.run(fill)?;
    ensure!(guest.run(fill)? == sum, "The guest's memory has changed");
    let after = pool.count("free_hugepages")?;
    ensure!(after <= before + 1, "{before} free pages, then {after}");
    Ok(())
}

fn actual(guest: &Guest) -> Result<u64> {
    let info = guest.machine.must("GET", "/api/v1/vm.info", None)?.json()?;
    info["memory_actual_size"]
        .as_u64()
        .context("No memory_actual_size")
}

/// Asks a guest of so much memory for a balloon of this size, and waits for it.
fn balloon_of(guest: &Guest, memory: u64, size: u64) -> Result<()> {
    let text = size.to_string();
    let resize = ["resize", "--balloon", &text];
    guest.machine.ch_remote_text(&resize)?;
    let deadline = Instant::now() + STEP_TIMEOUT;
    while actual(guest)? != memory - size {
        ensure!(
            Instant::now() < deadline,
            "The guest keeps {} of {memory}, the balloon is to have {size}",
            actual(guest)?
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn memory_beyond_4_gib_is_the_guests(site: &Site) -> Result<()> {
    let mut guest = Guest::boot(site, json!({"memory": {"size": 5u64 << 30}}))?;
    let ranges = guest.run("grep 'System RAM' /proc/iomem")?;
    ensure!(
        ranges
            .lines()
            .any(|line| line.trim() == "100000000-17fffffff : System RAM"),
        "The guest has\n{ranges}"
    );
    let total = "awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo";
    let total: u64 = guest.run(total)?.parse()?;
    ensure!(total > 4800, "The guest has {total} MiB");
    // Linux takes what lies highest first: the zone "Normal" is beyond 4 GiB.
    let free = "awk '/zone +Normal/ {on=1} on && /nr_free_pages/ {print $2; exit}' /proc/zoneinfo";
    let before: u64 = guest.run(free)?.parse()?;
    let high = |guest: &Guest| Mapping::of(&guest.machine, 2 << 30)?.kib("Rss");
    let resident = high(&guest)?;
    let fill = "yes 0123456 | head -c 67108864 >/t/fill; md5sum </t/fill | cut -d' ' -f1";
    let sum = guest.run(fill)?;
    let after: u64 = guest.run(free)?.parse()?;
    let grown = high(&guest)? - resident;
    ensure!(
        before >= after + (60 << 8) && grown >= 60 << 10,
        "{before} pages are free beyond 4 GiB, then {after}; the host gave {grown} KiB there"
    );
    guest.run("echo 3 >/proc/sys/vm/drop_caches")?;
    let again = guest.run("md5sum </t/fill | cut -d' ' -f1")?;
    ensure!(sum == again, "{sum}, then {again}");
    Ok(())
}

fn balloon_gives_memory_back_and_lets_go_when_the_guest_needs_it(site: &Site) -> Result<()> {
    const MEMORY: u64 = 320 << 20;
    let mut guest = Guest::boot(
        site,
        json!({"memory": {"size": MEMORY}, "balloon": {"size": 0, "deflate_on_oom": true}}),
    )?;
    let total = "awk '/MemFree/ {print int($2 / 1024)}' /proc/meminfo";
    guest.run("dd if=/dev/zero of=/t/fill bs=1M count=120 2>/dev/null; rm /t/fill")?;
    let before: u64 = guest.run(total)?.parse()?;
    let full = guest.resident()?;
    balloon_of(&guest, MEMORY, 128 << 20)?;
    let after: u64 = guest.run(total)?.parse()?;
    ensure!(
        after + 120 <= before,
        "{before} MiB are free, {after} with a balloon of 128"
    );
    let left = guest.resident()?;
    ensure!(
        left + (100 << 10) <= full,
        "{full} KiB are resident, {left} with a balloon of 128 MiB"
    );
    // More than is left. Nothing has to die for it.
    let killed = guest.run("dd if=/dev/zero of=/t/fill bs=1M count=140 2>/dev/null; dmesg | grep -c 'Out of memory' || true")?;
    let kept = actual(&guest)?;
    ensure!(
        killed == "0" && kept > MEMORY - (128 << 20),
        "{killed} processes were killed, the guest has {kept} bytes"
    );
    Ok(())
}

fn free_pages_go_back_to_the_host(site: &Site) -> Result<()> {
    let mut guest = Guest::boot(
        site,
        json!({"memory": {"size": 512 << 20}, "balloon": {"size": 0, "free_page_reporting": true}}),
    )?;
    // What the root of an initramfs may take is half of the memory.
    let fill = "dd if=/dev/zero of=/t/fill bs=1M count=160 2>&1";
    guest.run(fill)?;
    let full = guest.resident()?;
    guest.run("rm /t/fill")?;
    let deadline = Instant::now() + STEP_TIMEOUT;
    // The guest reports what is free for some seconds.
    while guest.resident()? + (128 << 10) > full {
        ensure!(
            Instant::now() < deadline,
            "{full} KiB with 160 MiB in use, {} without",
            guest.resident()?
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    guest.run(fill)?;
    Ok(())
}
