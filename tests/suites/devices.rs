//! Linux with Debian's own drivers for the machine's devices, and what both
//! sides see of them.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use instrumentation::table::Isa;
use lab::command::{command, output};
use lab::guest;
use lab::vmm::Machine;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "devices",
    applies: |site| site.is_patched() && site.boots_quickly() && !site.is_shared(),
    trials: trials![
        disk_grows_and_shrinks_under_the_guests_eyes,
        disk_gives_space_back_and_keeps_to_its_limit,
        image_in_use_is_refused_by_name,
        console_on_a_pseudo_terminal_and_power_button_reach_the_guest,
        console_has_the_terminals_size_and_follows_it,
        memory_beyond_4_gib_is_the_guests_and_the_balloon_takes_some,
        free_pages_go_back_to_the_host,
        topology_is_what_was_asked_for,
        network_device_has_the_address_and_packet_size_that_were_given,
    ],
};

const DONE: &str = "@done ";
/// How long a command in the guest may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Linux guest whose shell listens on the serial port.
struct Guest {
    machine: Machine,
    dir: PathBuf,
    shell: UnixStream,
}

impl Guest {
    /// Boots with this configuration besides. `prepare` makes files in the
    /// machine's folder.
    fn boot(
        site: &Site,
        prepare: impl FnOnce(&Path) -> Result<()>,
        more: impl FnOnce(&Path) -> Value,
    ) -> Result<Guest> {
        let dir = site.fresh_dir()?;
        prepare(&dir)?;
        let machine = Machine::idle(&site.bin(), &dir)?;
        Guest::boot_in(site, machine, dir, more)
    }

    /// The same in a VMM that runs.
    fn boot_in(
        site: &Site,
        machine: Machine,
        dir: PathBuf,
        more: impl FnOnce(&Path) -> Value,
    ) -> Result<Guest> {
        let script = format!(
            "for m in /t/*.ko; do insmod $m || echo \"no $m\"; done\n\
             echo '{DONE}0'\n\
             while read -r line; do eval \"$line\"; echo \"{DONE}$?\"; done\n"
        );
        let initramfs = dir.join("initramfs");
        let modules: Vec<_> = site
            .guest_modules()?
            .into_iter()
            .map(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                (format!("/t/{name}"), path.clone())
            })
            .collect();
        guest::initramfs_with(&site.base_initramfs(), &script, &modules, &initramfs)?;
        let serial = dir.join("serial.sock");
        let mut config = json!({
            "payload": {
                "kernel": site.kernel(), "initramfs": initramfs,
                "cmdline": "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable lpj=1000000",
            },
            "memory": {"size": 256 << 20},
            "serial": {"mode": "Socket", "socket": serial},
            "console": {"mode": "Off"},
        });
        if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more(&dir)) {
            config.extend(more);
        }
        machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
        let shell = UnixStream::connect(&serial)?;
        machine.must("PUT", "/api/v1/vm.boot", None)?;
        let mut guest = Guest {
            machine,
            dir,
            shell,
        };
        let said = guest.answer(site.linux_deadline())?;
        ensure!(!said.contains("no /t/"), "A driver is missing:\n{said}");
        Ok(guest)
    }

    /// What the guest says to a command that has to succeed.
    fn run(&mut self, command: &str) -> Result<String> {
        self.shell.write_all(format!("{command}\n").as_bytes())?;
        self.answer(PATIENCE)
            .with_context(|| format!("The guest was told: {command}"))
    }

    fn answer(&mut self, within: Duration) -> Result<String> {
        let deadline = Instant::now() + within;
        self.shell.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut said = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&said);
            if let Some((before, status)) = text.split_once(DONE)
                && let Some((status, _)) = status.split_once('\n')
            {
                ensure!(status.trim() == "0", "It failed ({status}):\n{before}");
                return Ok(before.trim().to_owned());
            }
            ensure!(
                Instant::now() < deadline && self.machine.is_running(),
                "No answer:\n{text}\nThe VMM said: {}",
                self.machine.stderr()
            );
            let mut buffer = [0; 4096];
            match self.shell.read(&mut buffer) {
                Ok(0) => bail!("The serial port is closed:\n{text}"),
                Ok(count) => said.extend_from_slice(&buffer[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Runs a command until it prints this.
    fn run_until(&mut self, command: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.run(command)?;
            if said == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{command} gives {said:?}, not {wanted:?}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn counter(&self, device: &str, name: &str) -> Result<u64> {
        let counters = self
            .machine
            .must("GET", "/api/v1/vm.counters", None)?
            .json()?;
        counters[device][name]
            .as_u64()
            .with_context(|| format!("No {name} of {device} in {counters}"))
    }

    /// Memory that the process has, in KiB.
    fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.machine.pid()))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"))
            .context("No VmRSS")?
            .trim()
            .parse()
            .context("VmRSS is no number")
    }
}

/// A sparse file.
fn sparse(path: &Path, size: u64) -> Result<()> {
    File::create(path)?.set_len(size)?;
    Ok(())
}

fn disk_grows_and_shrinks_under_the_guests_eyes(site: &Site) -> Result<()> {
    let mut guest = Guest::boot(
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
    let mut guest = Guest::boot(
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

fn image_in_use_is_refused_by_name(site: &Site) -> Result<()> {
    let guest = Guest::boot(
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
        refused.status == 500 && refused.body.contains("in use by another process"),
        "{}: {}",
        refused.status,
        refused.body
    );
    Ok(())
}

fn console_on_a_pseudo_terminal_and_power_button_reach_the_guest(site: &Site) -> Result<()> {
    let mut guest = Guest::boot(site, |_| Ok(()), |_| json!({"console": {"mode": "Pty"}}))?;
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

fn memory_beyond_4_gib_is_the_guests_and_the_balloon_takes_some(site: &Site) -> Result<()> {
    let mut guest = Guest::boot(
        site,
        |_| Ok(()),
        |_| json!({"memory": {"size": 5u64 << 30}, "balloon": {"size": 0}}),
    )?;
    let ranges = guest.run("grep 'System RAM' /proc/iomem")?;
    ensure!(
        ranges
            .lines()
            .any(|line| line.trim() == "100000000-17fffffff : System RAM"),
        "The guest has\n{ranges}"
    );
    let total = "awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo";
    let before: u64 = guest.run(total)?.parse()?;
    ensure!(before > 4800, "The guest has {before} MiB");
    guest
        .machine
        .ch_remote_text(&["resize", "--balloon", "128M"])?;
    let deadline = Instant::now() + PATIENCE;
    let actual = || -> Result<u64> {
        let info = guest.machine.must("GET", "/api/v1/vm.info", None)?.json()?;
        info["memory_actual_size"]
            .as_u64()
            .context("No memory_actual_size")
    };
    while actual()? != (5 << 30) - (128 << 20) {
        ensure!(Instant::now() < deadline, "The guest keeps {}", actual()?);
        std::thread::sleep(Duration::from_millis(100));
    }
    let after: u64 = guest.run(total)?.parse()?;
    ensure!(after + 128 == before, "{before} MiB, then {after}");
    Ok(())
}

fn free_pages_go_back_to_the_host(site: &Site) -> Result<()> {
    let mut guest = Guest::boot(
        site,
        |_| Ok(()),
        |_| json!({"memory": {"size": 512 << 20}, "balloon": {"size": 0, "free_page_reporting": true}}),
    )?;
    // What the root of an initramfs may take is half of the memory.
    let fill = "dd if=/dev/zero of=/t/fill bs=1M count=160 2>&1";
    guest.run(fill)?;
    let full = guest.resident()?;
    guest.run("rm /t/fill")?;
    let deadline = Instant::now() + PATIENCE;
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

fn topology_is_what_was_asked_for(site: &Site) -> Result<()> {
    let mut guest = Guest::boot(
        site,
        |_| Ok(()),
        |_| {
            let topology = json!({
                "threads_per_core": 2, "cores_per_die": 2, "dies_per_package": 1, "packages": 2,
            });
            json!({"cpus": {"boot_vcpus": 8, "max_vcpus": 8, "topology": topology}})
        },
    )?;
    let folder = "/sys/devices/system/cpu/cpu*/topology";
    let threads = guest.run(&format!(
        "cat {folder}/thread_siblings_list | sort -u | xargs"
    ))?;
    let packages = guest.run(&format!(
        "cat {folder}/core_siblings_list | sort -u | xargs"
    ))?;
    // Up to some series Linux believes AMD's processors about threads only by a
    // leaf that the emulated ones do not have.
    let told = site.isa() == Isa::Vmx
        || fs::read_to_string("/proc/cpuinfo")?.contains("topoext")
        || !fs::read_to_string("/proc/sys/kernel/osrelease")?.starts_with("6.1.");
    let expected = match told {
        true => "0-1 2-3 4-5 6-7",
        false => "0 1 2 3 4 5 6 7",
    };
    ensure!(
        threads == expected && packages == "0-3 4-7",
        "Threads of a core: {threads}; of a package: {packages}"
    );
    Ok(())
}

fn network_device_has_the_address_and_packet_size_that_were_given(site: &Site) -> Result<()> {
    if !Path::new("/dev/net/tun").exists() {
        output(&mut command("insmod", [site.module("tun")]))?;
    }
    let net = json!([{
        "tap": "dev0", "ip": "192.168.77.1", "mask": "255.255.255.0",
        "mac": "02:11:22:33:44:55", "mtu": 1400, "id": "wire",
    }]);
    let mut guest = Guest::boot(site, |_| Ok(()), |_| json!({"net": net}))?;
    let link = guest.run("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu | xargs")?;
    ensure!(link == "02:11:22:33:44:55 1400", "The guest has {link}");
    guest.run("ifconfig eth0 192.168.77.2 netmask 255.255.255.0 up")?;
    guest.run("ping -c 3 -s 1300 -W 20 192.168.77.1 >/dev/null")?;
    for name in ["rx_frames", "tx_frames"] {
        let frames = guest.counter("wire", name)?;
        ensure!(frames >= 3, "{frames} {name}");
    }
    for name in ["rx_bytes", "tx_bytes"] {
        let bytes = guest.counter("wire", name)?;
        ensure!(bytes >= 3 * 1300, "{bytes} {name}");
    }
    Ok(())
}
