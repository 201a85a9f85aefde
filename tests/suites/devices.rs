//! Linux with Debian's own drivers for the machine's devices, and what both
//! sides see of them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::vmm::Machine;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::json;

use crate::shell::{Guest, sparse};
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "devices",
    applies: Site::tries_devices,
    trials: trials![
        disk_grows_and_shrinks_under_the_guests_eyes,
        disk_gives_space_back_and_keeps_to_its_limit,
        disks_are_what_they_were_given_and_count_what_the_guest_counts,
        limits_of_bytes_and_of_a_group_hold,
        image_in_use_is_refused_by_name,
        entropy_comes_from_its_source,
        console_on_a_pseudo_terminal_and_power_button_reach_the_guest,
        console_has_the_terminals_size_and_follows_it,
        panic_of_the_guests_kernel_is_told_after_pause_pulse_and_reboot,
    ],
};

fn disk_grows_and_shrinks_under_the_guests_eyes(site: &Site) -> Result<()> {
    let mut guest = Guest::boot_with(
        site,
        |dir| sparse(&dir.join("disk"), 8 << 20),
        |dir| {
            json!({
                "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
                "disks": [{"path": dir.join("disk"), "num_queues": 2, "id": "data"}],
            })
        },
    )?;
    let size = "cat /sys/block/vda/size";
    ensure!(guest.run("ls /sys/block/vda/mq | wc -l")? == "2", "Queues");
    guest.run_until(size, &(8 << 11).to_string())?;
    for (mebibytes, last) in [(16, 15), (4, 3)] {
        let text = format!("{mebibytes}M");
        let resize = ["resize-disk", "--disk", "data", "--size", &text];
        guest.machine.ch_remote_text(&resize)?;
        // Nothing but the interrupt tells it.
        guest.run_until(size, &(mebibytes << 11).to_string())?;
        guest.run(&format!(
            "yes {mebibytes} | dd of=/dev/vda bs=1M seek={last} count=1 iflag=fullblock conv=fsync 2>/dev/null"
        ))?;
        let written = fs::read(guest.dir.join("disk"))?;
        let expected = format!("{mebibytes}\n");
        ensure!(
            written.len() == mebibytes << 20
                && written[last << 20..].starts_with(expected.as_bytes()),
            "{} bytes",
            written.len()
        );
    }
    for (disk, size, status) in [("data", "5000001", 400), ("other", "4M", 404)] {
        let out = guest
            .machine
            .ch_remote(&["resize-disk", "--disk", disk, "--size", size])?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let named = if status == 400 {
            "no disk's size"
        } else {
            "no disk called other"
        };
        ensure!(
            out.status.code() == Some(1) && said.contains(named),
            "{}: {said}",
            out.status
        );
    }
    let zone = guest
        .machine
        .ch_remote(&["resize-zone", "--id", "a", "--size", "1G"])?;
    let said = String::from_utf8_lossy(&zone.stderr).into_owned();
    ensure!(said.contains("memory zone is not supported"), "{said}");
    Ok(())
}

fn disk_gives_space_back_and_keeps_to_its_limit(site: &Site) -> Result<()> {
    let mut guest = Guest::boot_with(
        site,
        |dir| {
            sparse(&dir.join("disk"), 16 << 20)?;
            sparse(&dir.join("slow"), 16 << 20)
        },
        |dir| {
            let limit = json!({"ops": {"size": 5, "refill_time": 1000}});
            json!({"disks": [
                {"path": dir.join("disk"), "id": "free"},
                {"path": dir.join("slow"), "id": "slow", "rate_limiter_config": limit},
            ]})
        },
    )?;
    let blocks =
        |guest: &Guest| -> Result<u64> { Ok(fs::metadata(guest.dir.join("disk"))?.blocks()) };
    guest.run("yes | dd of=/dev/vda bs=1M count=8 iflag=fullblock conv=fsync 2>/dev/null")?;
    let full = blocks(&guest)?;
    ensure!(full >= 8 << 11, "8 MiB written, {full} blocks of 512 bytes");
    guest.run("blkdiscard -o 0 -l 6291456 /dev/vda")?;
    let left = blocks(&guest)?;
    ensure!(
        left + (6 << 11) <= full,
        "6 MiB discarded, {left} of {full} blocks are left"
    );
    ensure!(
        guest.counter("free", "write_bytes")? >= 8 << 20,
        "write_bytes of the first disk"
    );
    // Single blocks, far apart: each is a request.
    guest.run(
        "(for i in $(seq 0 99); do dd if=/dev/vdb of=/dev/null bs=4k skip=$((i*37)) count=1; done) \
         >/dev/null 2>&1 &",
    )?;
    std::thread::sleep(Duration::from_secs(2));
    let before = guest.counter("slow", "read_ops")?;
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(5));
    let done = guest.counter("slow", "read_ops")? - before;
    // The bucket may have been full when the count began.
    let most = 5 * (start.elapsed().as_secs() + 2);
    ensure!(
        (1..=most).contains(&done),
        "{done} reads in {:?}, 5 a second are allowed",
        start.elapsed()
    );
    Ok(())
}

fn disks_are_what_they_were_given_and_count_what_the_guest_counts(site: &Site) -> Result<()> {
    let mut guest = Guest::boot_with(
        site,
        |dir| {
            sparse(&dir.join("disk"), 8 << 20)?;
            fs::write(dir.join("fixed"), vec![b'x'; 1 << 20])?;
            // A program of ours for the guest, as a disk.
            let mut program = fs::read(site.bin().join("lab-suites"))?;
            program.resize(program.len().next_multiple_of(512), 0);
            fs::write(dir.join("program"), program)?;
            Ok(())
        },
        |dir| {
            json!({
                "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
                "disks": [
                    {
                        "path": dir.join("disk"), "num_queues": 2, "queue_size": 64,
                        "serial": "a serial number", "id": "data",
                        "queue_affinity": [{"queue_index": 1, "host_cpus": [0]}],
                    },
                    {"path": dir.join("fixed"), "readonly": true, "id": "fixed"},
                    {"path": dir.join("program"), "readonly": true},
                ],
            })
        },
    )?;
    // What the guest was shown.
    for (file, shown) in [
        ("vda/serial", "a serial number"),
        ("vda/mq/1/nr_tags", "64"),
        ("vda/ro", "0"),
        ("vdb/ro", "1"),
        ("vdb/mq/0/nr_tags", "128"),
        ("vdb/size", "2048"),
    ] {
        let said = guest.run(&format!("cat /sys/block/{file}"))?;
        ensure!(said == shown, "{file} is {said:?}, not {shown:?}");
    }
    let refused = guest.run(
        "dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync 2>&1 | tail -n 1; \
         blockdev --setrw /dev/vdb 2>&1; dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync 2>&1 | tail -n 1",
    )?;
    let image = fs::read(guest.dir.join("fixed"))?;
    ensure!(
        image.len() == 1 << 20 && image.iter().all(|&byte| byte == b'x'),
        "The guest changed an image that is read-only: {refused}"
    );

    // Directly: Linux counts a flush as a write of nothing.
    guest.run("yes | dd of=/dev/vda bs=1M count=8 iflag=fullblock oflag=direct 2>/dev/null")?;
    // Both sides count the same.
    guest.run("dd if=/dev/vda of=/dev/null bs=4k count=50 skip=100 iflag=direct 2>/dev/null")?;
    let statistics = guest.run("cat /sys/block/vda/stat")?;
    let numbers: Vec<u64> = statistics
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [reads, _, read, _, writes, _, written, ..] = numbers[..] else {
        anyhow::bail!("Too few numbers: {statistics}");
    };
    let expected = [reads, read * 512, writes, written * 512];
    let mut counted = Vec::new();
    for name in ["read_ops", "read_bytes", "write_ops", "write_bytes"] {
        counted.push(guest.counter("data", name)?);
    }
    ensure!(
        counted == expected && reads >= 50,
        "{counted:?} counted, {expected:?} in the guest"
    );

    // Zeroes, with the space given back and without.
    guest.run("dd if=/dev/vdc of=/t/suites bs=1M 2>/dev/null; chmod +x /t/suites")?;
    let path = guest.dir.join("disk");
    let blocks = || -> Result<u64> { Ok(fs::metadata(&path)?.blocks()) };
    let full = blocks()?;
    for (offset, more) in [(1u64 << 20, ""), (4 << 20, "--free")] {
        guest.run(&format!(
            "/t/suites --isa svm --modules patched write-zeroes /dev/vda {offset} 2097152 {more}"
        ))?;
        guest.run("sync /dev/vda")?;
        let now = fs::read(&path)?;
        let start = offset as usize;
        let zeroes = now[start..start + (2 << 20)].iter().all(|&byte| byte == 0);
        let around = now[start - 1] == b'\n' && now[start + (2 << 20)] == b'y';
        ensure!(
            zeroes && around,
            "Zeroes {zeroes}, the rest {around} at {offset}"
        );
    }
    let left = blocks()?;
    ensure!(
        left + (2 << 11) <= full && left + (4 << 11) >= full,
        "{left} blocks of {full} are left: 2 MiB of 4 were to be given back"
    );
    Ok(())
}

fn limits_of_bytes_and_of_a_group_hold(site: &Site) -> Result<()> {
    let names = ["bytes", "one", "two"];
    let mut guest = Guest::boot_with(
        site,
        |dir| {
            names
                .iter()
                .try_for_each(|name| sparse(&dir.join(name), 64 << 20))
        },
        |dir| {
            json!({
                "rate_limit_groups": [{
                    "id": "both",
                    "rate_limiter_config": {"ops": {"size": 10, "refill_time": 1000}},
                }],
                "disks": [
                    {
                        "path": dir.join("bytes"), "id": "bytes",
                        "rate_limiter_config": {"bandwidth": {"size": 1 << 20, "refill_time": 1000}},
                    },
                    {"path": dir.join("one"), "id": "one", "rate_limit_group": "both"},
                    {"path": dir.join("two"), "id": "two", "rate_limit_group": "both"},
                ],
            })
        },
    )?;
    for disk in ["vda", "vdb", "vdc"] {
        let size = if disk == "vda" { "256k" } else { "4k" };
        guest.run(&format!(
            "dd if=/dev/{disk} of=/dev/null bs={size} count=4000 iflag=direct >/dev/null 2>&1 &"
        ))?;
    }
    // What was saved up is gone by then.
    std::thread::sleep(Duration::from_secs(2));
    let counted = |guest: &Guest| -> Result<[u64; 3]> {
        Ok([
            guest.counter("bytes", "read_bytes")?,
            guest.counter("one", "read_ops")?,
            guest.counter("two", "read_ops")?,
        ])
    };
    let before = counted(&guest)?;
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(4));
    let after = counted(&guest)?;
    let seconds = start.elapsed().as_secs_f64();
    let [bytes, one, two] = [0, 1, 2].map(|index| (after[index] - before[index]) as f64);
    // A request of 256 KiB may owe most of its bytes at either end.
    let wanted = f64::from(1 << 20) * seconds;
    ensure!(
        (0.5 * wanted..wanted + 600_000.0).contains(&bytes),
        "{bytes} bytes in {seconds} s, 1 MiB a second is allowed"
    );
    let wanted = 10.0 * seconds;
    ensure!(
        one >= 2.0 && two >= 2.0 && (0.5 * wanted..wanted + 3.0).contains(&(one + two)),
        "{one} and {two} reads in {seconds} s, 10 a second are allowed together"
    );
    Ok(())
}

fn entropy_comes_from_its_source(site: &Site) -> Result<()> {
    // Every four bytes of it are there once.
    let source: Vec<u8> = (0..0x4_0000_u32)
        .flat_map(|number| number.wrapping_mul(0x9e37_79b1).to_le_bytes())
        .collect();
    let mut guest = Guest::boot_with(
        site,
        |dir| Ok(fs::write(dir.join("source"), &source)?),
        |dir| json!({"rng": {"src": dir.join("source")}}),
    )?;
    let said = guest.run("dd if=/dev/hwrng bs=32 count=1 2>/dev/null | od -An -v -tx1")?;
    let bytes: Vec<u8> = said
        .split_whitespace()
        .map(|word| u8::from_str_radix(word, 16))
        .collect::<Result<_, _>>()?;
    ensure!(
        bytes.len() == 32 && source.windows(32).any(|window| window == bytes),
        "The guest read {said}"
    );
    Ok(())
}

fn image_in_use_is_refused_by_name(site: &Site) -> Result<()> {
    let guest = Guest::boot_with(
        site,
        |dir| sparse(&dir.join("disk"), 1 << 20),
        |dir| json!({"disks": [{"path": dir.join("disk")}]}),
    )?;
    let other = site.fresh_dir()?;
    let machine = Machine::idle(&site.bin(), &other)?;
    let config = json!({
        "payload": {"kernel": site.kernel()},
        "console": {"mode": "Off"},
        "disks": [{"path": guest.dir.join("disk"), "readonly": true}],
    });
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    let refused = machine.api("PUT", "/api/v1/vm.boot", None)?;
    ensure!(
        refused.status == 400 && refused.body.contains("in use by another process"),
        "{}: {}",
        refused.status,
        refused.body
    );
    Ok(())
}

fn console_on_a_pseudo_terminal_and_power_button_reach_the_guest(site: &Site) -> Result<()> {
    let mut guest = Guest::boot(site, json!({"console": {"mode": "Pty"}}))?;
    let info = guest.machine.must("GET", "/api/v1/vm.info", None)?.json()?;
    let path = info["config"]["console"]["file"]
        .as_str()
        .with_context(|| format!("vm.info tells no path: {info}"))?;
    let mut terminal = File::options().read(true).write(true).open(path)?;
    guest.run("(read -r word </dev/hvc0; echo \"got $word\" >/dev/hvc0) &")?;
    terminal.write_all(b"typed\r")?;
    let mut said = String::new();
    // Its own echo comes first.
    while !said.contains("got typed") {
        let mut byte = [0];
        terminal.read_exact(&mut byte)?;
        said.push(char::from(byte[0]));
        ensure!(said.len() < 1000, "The console says {said:?}");
    }
    guest.run("dd if=/dev/input/event0 bs=24 count=1 of=/t/key 2>/dev/null & sleep 1")?;
    guest.machine.ch_remote_text(&["power-button"])?;
    // A key was pressed (type 1, value 1), and it is that of power (116).
    guest.run_until(
        "hexdump -v -s 16 -e '1/2 \"%d \" 1/2 \"%d \" 1/4 \"%d\"' /t/key 2>/dev/null || true",
        "1 116 1",
    )
}

fn console_has_the_terminals_size_and_follows_it(site: &Site) -> Result<()> {
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&main)?;
    unlockpt(&main)?;
    let path = ptsname(&main, Vec::new())?.into_string()?;
    let terminal = File::options().read(true).write(true).open(path)?;
    let resize = |ws_row, ws_col| {
        let size = Winsize {
            ws_row,
            ws_col,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&main, size).context("Cannot change the terminal's size")
    };
    resize(24, 81)?;
    let dir = site.fresh_dir()?;
    let machine = Machine::idle_on(&site.bin(), &dir, &terminal)?;
    let mut guest = Guest::boot_in(site, machine, dir, |_| json!({"console": {"mode": "Tty"}}))?;
    guest.run_until("stty -F /dev/hvc0 size", "24 81")?;
    resize(30, 100)?;
    // Who has the terminal is sent the signal; here nobody does.
    let pid = Pid::from_raw(i32::try_from(guest.machine.pid())?).context("No process")?;
    kill_process(pid, Signal::WINCH)?;
    guest.run_until("stty -F /dev/hvc0 size", "30 100")
}

fn panic_of_the_guests_kernel_is_told_after_pause_pulse_and_reboot(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let events = dir.join("events");
    let monitor = format!("path={}", events.display());
    let machine = Machine::idle_with(&site.bin(), &dir, &["--event-monitor".into(), monitor])?;
    let mut guest = Guest::boot_in(site, machine, dir, |_| json!({"pvpanic": true}))?;
    let panics = || -> Result<Vec<String>> {
        let text = fs::read_to_string(&events)?;
        let events = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
        let mut panics = Vec::new();
        for event in events {
            let event = event?;
            if event["event"] == "panic" {
                panics.push(format!("{} {}", event["source"], event["properties"]));
            }
        }
        Ok(panics)
    };
    let bound = "ls /sys/bus/pci/drivers/pvpanic-pci | grep -c ^0000:";
    ensure!(guest.run(bound)? == "1", "The driver has no device");
    let info = guest.machine.must("GET", "/api/v1/vm.info", None)?.json()?;
    let shown = &info["device_tree"]["__pvpanic"];
    ensure!(shown["pci_bdf"].is_string(), "{shown}");
    let fixed = guest.machine.ch_remote(&["remove-device", "__pvpanic"])?;
    ensure!(fixed.status.code() == Some(1), "It can be removed");
    for action in ["vm.pause", "vm.resume"] {
        guest
            .machine
            .must("PUT", &format!("/api/v1/{action}"), None)?;
    }
    // Only on hosts whose KVM gives and takes the counters.
    if site.is_patched() {
        guest.machine.must("PUT", "/api/v1/vm.pulse", None)?;
    }
    guest.run("true")?;
    ensure!(panics()?.is_empty(), "{:?}", panics()?);
    for boot in 1..=2 {
        // The kernel resets the machine after its panic, as its command line says.
        guest.panic_and_boot_again(site)?;
        let told = panics()?;
        let expected = vec!["\"guest\" {\"event\":\"panic\"}".to_owned(); boot];
        ensure!(told == expected, "{told:?}");
        // What the guest finds after a reboot that somebody else asks for.
        guest.reboot(site)?;
        ensure!(guest.run(bound)? == "1", "No device after a reboot");
    }
    let log = guest.machine.stderr();
    ensure!(
        log.matches("the guest's kernel panicked (panic)").count() == 2,
        "The VMM said: {log}"
    );
    Ok(())
}
