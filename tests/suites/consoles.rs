//! What the guest writes and what is typed to it, by every way that leads out
//! of the VMM.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::guest::{Instruction, Program};
use lab::vmm::Machine;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};

use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "consoles",
    applies: Site::is_patched,
    trials: trials![
        serial_port_on_a_pseudo_terminal_carries_both_ways,
        serial_port_on_a_socket_carries_both_ways_and_survives_a_reboot,
        serial_port_on_a_socket_keeps_what_came_before_the_client,
        serial_port_and_console_share_the_terminal,
        debug_port_writes_to_its_file,
        debug_port_is_where_it_is_told_to_be,
        socket_that_nobody_reads_holds_no_guest_up,
    ],
};

/// Boots a tiny guest with this configuration besides.
fn boot(site: &Site, dir: &Path, image: &[u8], more: Value) -> Result<Machine> {
    let kernel = dir.join("guest.elf");
    fs::write(&kernel, image)?;
    let mut config = json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "console": {"mode": "Off"},
    });
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
        config.extend(more);
    }
    let machine = Machine::idle(&site.bin(), dir)?;
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    Ok(machine)
}

/// Types words, more than the port's buffer holds, and reads them back.
fn echoes(mut typist: impl Write, mut reader: impl Read) -> Result<()> {
    let words = b"0123456789abcdef".repeat(16);
    typist.write_all(&words)?;
    let mut back = vec![0; words.len()];
    reader.read_exact(&mut back)?;
    ensure!(back == words, "Other words came back: {back:?}");
    Ok(())
}

fn serial_port_on_a_pseudo_terminal_carries_both_ways(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let serial = json!({"serial": {"mode": "Pty"}});
    let machine = boot(site, &dir, &Program::new().echo(), serial)?;
    let info = machine.must("GET", "/api/v1/vm.info", None)?.json()?;
    let path = info["config"]["serial"]["file"]
        .as_str()
        .with_context(|| format!("vm.info tells no path: {info}"))?;
    ensure!(path.starts_with("/dev/pts/"), "The path is {path}");
    let terminal = File::options().read(true).write(true).open(path)?;
    echoes(&terminal, &terminal)?;
    // Another program finds it as this one did.
    drop(terminal);
    let terminal = File::options().read(true).write(true).open(path)?;
    echoes(&terminal, &terminal)
}

fn serial_port_on_a_socket_carries_both_ways_and_survives_a_reboot(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let path = dir.join("serial.sock");
    let serial = json!({"serial": {"mode": "Socket", "socket": path}});
    let machine = boot(site, &dir, &Program::new().echo(), serial)?;
    let stream = UnixStream::connect(&path)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    echoes(&stream, &stream)?;
    machine.must("PUT", "/api/v1/vm.reboot", None)?;
    echoes(&stream, &stream)?;
    drop(stream);
    let stream = UnixStream::connect(&path)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    echoes(&stream, &stream)?;
    machine.must("PUT", "/api/v1/vm.delete", None)?;
    ensure!(!path.exists(), "{} is still there", path.display());
    Ok(())
}

fn serial_port_on_a_socket_keeps_what_came_before_the_client(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let path = dir.join("serial.sock");
    let image = Program::new().repeat(Instruction::Out(0x3f8), FLOOD).halt();
    let serial = json!({"serial": {"mode": "Socket", "socket": path}});
    let machine = boot(site, &dir, &image, serial)?;
    machine.wait_until_silent(site.tiny_deadline())?;
    let mut stream = UnixStream::connect(&path)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut kept = vec![0; FLOOD as usize];
    stream.read_exact(&mut kept)?;
    ensure!(kept.iter().all(|&byte| byte == b'.'), "Other bytes came");
    Ok(())
}

fn serial_port_and_console_share_the_terminal(site: &Site) -> Result<()> {
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&main)?;
    unlockpt(&main)?;
    let path = ptsname(&main, Vec::new())?;
    let terminal = File::options()
        .read(true)
        .write(true)
        .open(path.to_str()?)?;
    let dir = site.fresh_dir()?;
    let kernel = dir.join("guest.elf");
    fs::write(&kernel, Program::new().echo())?;
    let machine = Machine::idle_on(&site.bin(), &dir, &terminal)?;
    // The console is on the terminal unless told otherwise.
    let config = json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "Tty"},
    });
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    let main = File::from(main);
    echoes(&main, &main)?;
    let said = machine.stderr();
    ensure!(said.contains("share the terminal"), "No warning: {said}");
    let info = machine.must("GET", "/api/v1/vm.info", None)?.json()?;
    let tree = &info["device_tree"];
    let function = &tree["_virtio-pci-__console"];
    ensure!(
        tree["__console"]["parent"] == "_virtio-pci-__console"
            && function["children"] == json!(["__console"])
            && function["pci_bdf"] == "0000:00:01.0"
            && function["resources"][0]["PciBar"]["base"].as_u64() > Some(0),
        "{tree}"
    );
    for fixed in ["__rng", "_virtio-pci-__console"] {
        let body = json!({"id": fixed}).to_string();
        let refused = machine.api("PUT", "/api/v1/vm.remove-device", Some(&body))?;
        ensure!(
            refused.status == 500 && refused.body.contains("cannot be removed"),
            "{fixed}: {} {}",
            refused.status,
            refused.body
        );
    }
    Ok(())
}

/// What a guest says that writes five bytes to a port.
fn debug_output(site: &Site, port: u16, more: Value) -> Result<Vec<u8>> {
    let dir = site.fresh_dir()?;
    let file = dir.join("debug.log");
    let mut debug = json!({"mode": "File", "file": file});
    if let (Some(debug), Value::Object(more)) = (debug.as_object_mut(), more) {
        debug.extend(more);
    }
    let image = Program::new().repeat(Instruction::Out(port), 5).halt();
    let _machine = boot(site, &dir, &image, json!({"debug_console": debug}))?;
    let deadline = Instant::now() + site.tiny_deadline();
    loop {
        let bytes = fs::read(&file)?;
        if bytes.len() >= 5 {
            return Ok(bytes);
        }
        ensure!(Instant::now() < deadline, "{bytes:?} is all that came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn debug_port_writes_to_its_file(site: &Site) -> Result<()> {
    let bytes = debug_output(site, 0xe9, json!({}))?;
    ensure!(bytes == b".....", "{bytes:?}");
    Ok(())
}

fn debug_port_is_where_it_is_told_to_be(site: &Site) -> Result<()> {
    let bytes = debug_output(site, 0x402, json!({"iobase": 0x402}))?;
    ensure!(bytes == b".....", "{bytes:?}");
    Ok(())
}

/// Bytes, written one at a time, of which a socket holds some hundreds.
const FLOOD: u32 = 2000;

fn socket_that_nobody_reads_holds_no_guest_up(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let path = dir.join("serial.sock");
    let image = Program::new().repeat(Instruction::Out(0x3f8), FLOOD).halt();
    let kernel = dir.join("guest.elf");
    fs::write(&kernel, &image)?;
    let config = json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "Socket", "socket": path},
        "console": {"mode": "Off"},
    });
    let machine = Machine::idle(&site.bin(), &dir)?;
    machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
    // Connected, and not reading.
    let stream = UnixStream::connect(&path)?;
    machine.must("PUT", "/api/v1/vm.boot", None)?;
    machine.wait_until_silent(site.tiny_deadline())?;
    let exits = machine.stats()?.exits(site.numbers().io);
    ensure!(exits == u64::from(FLOOD), "{exits} port accesses");
    stream.set_nonblocking(true)?;
    let mut kept = vec![0; FLOOD as usize];
    let first = (&stream).read(&mut kept)?;
    ensure!(
        first > 0 && kept[..first].iter().all(|&byte| byte == b'.'),
        "What came first is lost: {first} bytes"
    );
    Ok(())
}
