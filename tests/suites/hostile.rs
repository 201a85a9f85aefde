//! Guests and clients that ask devices for all that there is. The VM answers its
//! operator meanwhile, and ends when it is told to.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::guest::{Buffer, RawDriver};
use lab::oracle::own_memory;
use lab::vmm::Machine;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::shell::{Guest, sparse};
use crate::site::Site;
use crate::sockets::raise_limit;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "hostile",
    applies: Site::tries_devices,
    trials: trials![
        vm_ends_whatever_its_driver_asks_of_the_balloon,
        vm_ends_while_its_driver_offers_the_same_write_again_and_again,
        vm_ends_while_its_driver_zeroes_the_same_ranges_again_and_again,
        thousands_of_sockets_leave_api_and_console_alone,
    ],
};

/// How long a VM may take to end: it is killed after thirty seconds.
const END: Duration = Duration::from_secs(20);
/// How long its operator may have to wait for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// What the driver has said when it begins.
const BEGUN: u8 = b'B';
/// How long it then goes on at least.
const ATTACK: Duration = Duration::from_secs(1);
/// How long a device may take to be seen at work.
const AT_WORK: Duration = Duration::from_secs(30);

const BLOCK: u32 = 2;
const BALLOON: u32 = 5;

const MEMORY_MIB: u64 = 256;
/// Bytes of the VMM's own that no driver may add to.
const OWN_MEMORY: u64 = 64 << 20;

/// Where the guests keep what a request begins and ends with, and their data.
const HEADER: u32 = 0x40_0000;
const STATUS: u32 = 0x40_1000;
const DATA: u32 = 0x50_0000;

fn readable(address: u32, length: u32) -> Buffer {
    Buffer {
        address,
        length,
        writable: false,
    }
}

/// The request of a disk, with its header and its status.
fn request(kind: u32, data: Buffer) -> RawDriver {
    let mut header = kind.to_le_bytes().to_vec();
    header.resize(16, 0);
    let status = Buffer {
        address: STATUS,
        length: 1,
        writable: true,
    };
    RawDriver::new(BLOCK, 0, 128)
        .put(HEADER, &header)
        .chain(&[readable(HEADER, 16), data, status])
}

/// What ends a VM or the whole VMM while its driver goes on.
const ENDS: [&str; 3] = ["vm.reboot", "vm.shutdown", "SIGTERM"];

/// Boots the guest, lets it go on for a while, and ends the VM in each way. By
/// the devices' counters or the files, the device must have been at work.
fn ends_in_time(
    site: &Site,
    image: &[u8],
    more: impl Fn(&Path) -> Result<Value>,
    is_at_work: impl Fn(&Value, &Path) -> bool,
) -> Result<()> {
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    fs::write(&kernel, image)?;
    let mut machine = Machine::idle(&site.bin(), &dir)?;
    let mut config = json!({
        "payload": {"kernel": kernel},
        "memory": {"size": MEMORY_MIB << 20},
        "serial": {"mode": "File", "file": dir.join("serial.log")},
        "console": {"mode": "Off"},
    });
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more(&dir)?) {
        config.extend(more);
    }
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    for (round, end) in (1..).zip(ENDS) {
        let state = machine.must("GET", "/api/v1/vm.info", None)?.json()?["state"].clone();
        if state != "Running" {
            machine.must("PUT", "/api/v1/vm.boot", None)?;
        }
        let said = machine.wait_for_bytes(round, site.tiny_deadline())?;
        ensure!(said.iter().all(|&byte| byte == BEGUN), "{said:?}");
        // A slow host may need longer than that for one large request.
        let start = Instant::now();
        loop {
            sleep(ATTACK);
            let counters = machine.must("GET", "/api/v1/vm.counters", None)?.json()?;
            if is_at_work(&counters, &dir) {
                break;
            }
            ensure!(start.elapsed() < AT_WORK, "It is not at work: {counters}");
        }
        let own = own_memory(machine.pid(), MEMORY_MIB)?;
        ensure!(own < OWN_MEMORY, "The VMM has {own} bytes of its own");
        within(ANSWER, || machine.must("GET", "/api/v1/vm.info", None))?;
        within(END, || {
            if end == "SIGTERM" {
                let pid = i32::try_from(machine.pid())?;
                kill_process(Pid::from_raw(pid).context("No process")?, Signal::TERM)?;
                let finished = machine.wait_for_end()?;
                ensure!(finished.status.success(), "{}", finished.status);
                return Ok(());
            }
            machine
                .must("PUT", &format!("/api/v1/{end}"), None)
                .map(drop)
        })
        .with_context(|| format!("{end}: {}", machine.stderr()))?;
    }
    let log = machine.stderr();
    ensure!(
        log.lines().count() < 100,
        "The guest writes the log:\n{log}"
    );
    Ok(())
}

fn within<T>(limit: Duration, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let outcome = act()?;
    let took = start.elapsed();
    ensure!(took < limit, "It took {took:?}");
    Ok(outcome)
}

fn vm_ends_whatever_its_driver_asks_of_the_balloon(site: &Site) -> Result<()> {
    // A list of the whole memory, taken for page numbers, 128 times.
    let list = readable(0x100_0000, (MEMORY_MIB as u32 - 32) << 20);
    let guest = RawDriver::new(BALLOON, 0, 128)
        .chain(&[list; 128])
        .say(BEGUN)
        .offer()?;
    ends_in_time(
        site,
        &guest,
        |_| Ok(json!({"balloon": {"size": 0}})),
        // Each list is longer than any that is served.
        |counters, _| counters["__balloon"]["driver_faults"].as_u64() > Some(0),
    )
}

fn vm_ends_while_its_driver_offers_the_same_write_again_and_again(site: &Site) -> Result<()> {
    const LENGTH: u32 = 64 << 20;
    const WRITE: u32 = 1;
    let guest = request(WRITE, readable(DATA, LENGTH)).say(BEGUN).offer()?;
    ends_in_time(
        site,
        &guest,
        |dir| {
            sparse(&dir.join("disk"), LENGTH.into())?;
            Ok(json!({"disks": [{"id": "disk", "path": dir.join("disk"), "image_type": "Raw"}]}))
        },
        |counters, _| counters["disk"]["write_ops"].as_u64() > Some(0),
    )
}

fn vm_ends_while_its_driver_zeroes_the_same_ranges_again_and_again(site: &Site) -> Result<()> {
    const WRITE_ZEROES: u32 = 13;
    const MAY_UNMAP: u32 = 1;
    // As many as one request may have, all of them all that is advertised.
    const RANGES: usize = 16;
    const SECTORS: u32 = (2 << 30) / 512;
    let mut range = 0u64.to_le_bytes().to_vec();
    range.extend(SECTORS.to_le_bytes());
    range.extend(MAY_UNMAP.to_le_bytes());
    let ranges = range.repeat(RANGES);
    let guest = request(WRITE_ZEROES, readable(DATA, ranges.len() as u32))
        .put(DATA, &ranges)
        .say(BEGUN)
        .offer()?;
    ends_in_time(
        site,
        &guest,
        |dir| {
            fs::write(dir.join("disk"), "not zero")?;
            let disk = fs::File::options().write(true).open(dir.join("disk"))?;
            disk.set_len(u64::from(SECTORS) * 512)?;
            Ok(json!({"disks": [{"path": dir.join("disk"), "image_type": "Raw"}]}))
        },
        |_, dir| {
            let mut begin = [1; 8];
            let disk = fs::File::open(dir.join("disk"));
            disk.is_ok_and(|mut disk| disk.read_exact(&mut begin).is_ok()) && begin == [0; 8]
        },
    )
}

/// Clients of the socket device's socket on the host, and connections that the
/// guest asks for: more than the device has places.
const VISITORS: usize = 1000;
const CONNECTIONS: usize = 1100;
const PORT: u32 = 5000;

fn thousands_of_sockets_leave_api_and_console_alone(site: &Site) -> Result<()> {
    let mut guest = Guest::boot_with(
        site,
        |dir| {
            // A program of ours for the guest, as a disk.
            let mut program = fs::read(site.bin().join("lab-suites"))?;
            program.resize(program.len().next_multiple_of(512), 0);
            fs::write(dir.join("program"), program).context("Cannot write the program")
        },
        |dir| {
            json!({
                "disks": [{"path": dir.join("program"), "readonly": true, "image_type": "Raw"}],
                "vsock": {"cid": 3, "socket": dir.join("vsock")},
            })
        },
    )?;
    guest.run("cat /dev/vda >/program; chmod +x /program")?;
    let socket = guest.dir.join("vsock");
    raise_limit()?;
    // The host's programs that the guest reaches, and who holds on to them.
    let listener = UnixListener::bind(guest.dir.join(format!("vsock_{PORT}")))?;
    thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            held.push(stream);
        }
    });
    let answers = |guest: &mut Guest, when: &str| -> Result<()> {
        within(ANSWER, || {
            guest.machine.must("GET", "/api/v1/vmm.ping", None)
        })
        .context(when.to_owned())?;
        within(ANSWER, || {
            guest.machine.must("GET", "/api/v1/vm.counters", None)
        })
        .context(when.to_owned())?;
        within(ANSWER, || guest.run("echo here"))
            .context(when.to_owned())
            .map(drop)
    };

    let isa = site.isa().as_str();
    let hold = format!("/program --isa {isa} --modules stock hold-vsock {PORT}");
    guest.run(&format!("{hold} {CONNECTIONS} >/tmp/held 2>&1 &"))?;
    guest.run_until("grep -c held= /tmp/held || true", "1")?;
    answers(&mut guest, "With connections")?;
    let held = guest.run("cat /tmp/held")?;
    let count = |word: &str| -> Result<usize> {
        let mut words = held.split_whitespace();
        let number = words.find_map(|found| found.strip_prefix(word));
        let number = number.with_context(|| format!("No {word} in {held:?}"))?;
        number.parse().context("No number")
    };
    let (open, refused) = (count("held=")?, count("refused=")?);
    ensure!(
        open + refused == CONNECTIONS && open > CONNECTIONS / 2 && refused > 0,
        "{held}"
    );
    // Who does not say what he wants takes a place where there is one.
    let mut visitors = Vec::new();
    for _ in 0..VISITORS {
        visitors.extend(UnixStream::connect(&socket).ok());
    }
    answers(&mut guest, "With connections and visitors")?;

    // Whoever goes leaves his place.
    drop(visitors);
    guest.run("killall program; sleep 1")?;
    guest.run(&format!("{hold} 1 >/tmp/again 2>&1 &"))?;
    guest.run_until("cat /tmp/again", "held=1 refused=0")?;
    let mut visitor = UnixStream::connect(&socket)?;
    visitor.set_read_timeout(Some(ANSWER))?;
    visitor.write_all(b"CONNECT 7\n")?;
    // Nobody listens there: the guest's own answer, by way of the device.
    let ended = match visitor.read(&mut [0; 16]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    ensure!(ended, "A port is reached on which nobody listens");
    let log = guest.machine.stderr();
    ensure!(log.lines().count() < 100, "They write the log:\n{log}");
    within(END, || {
        guest.machine.must("PUT", "/api/v1/vm.shutdown", None)
    })
    .map(drop)
}
