//! A paused VM stands still as a whole, whatever its devices were about.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::oracle::guest_memory_checksum;
use serde_json::json;

use crate::site::Site;
use crate::unrest::{self, Tap, Unrest};
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "pause",
    applies: Site::tries_devices,
    trials: trials![no_byte_of_a_paused_vm_changes_whatever_its_devices_do],
};

/// Unlike the size of any other mapping of a VMM.
const MEMORY: u64 = 192 << 20;
const ROUNDS: u64 = 5;
const TAP: Tap = Tap {
    name: "pause0",
    host: "192.168.81.1",
    guest: "192.168.81.2",
    host_mac: "02:aa:bb:cc:dd:81",
};

fn no_byte_of_a_paused_vm_changes_whatever_its_devices_do(site: &Site) -> Result<()> {
    let mut guest = unrest::boot(site, &TAP, 64 << 20, |dir| {
        json!({
            "memory": {"size": MEMORY, "shared": true},
            "disks": [{"path": dir.join("disk"), "id": "disk", "num_queues": 2}],
            "balloon": {"size": 0, "free_page_reporting": true},
            "watchdog": true,
        })
    })?;
    let unrest = Unrest::start(TAP.host, guest.dir.join("vsock"))?;
    for work in [
        "dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null".to_owned(),
        "dd if=/dev/urandom of=/dev/vda bs=16k count=64 oflag=direct conv=notrunc 2>/dev/null"
            .to_owned(),
        format!(
            "nc {} {} </dev/zero >/dev/null 2>&1",
            TAP.host,
            unrest.port()
        ),
    ] {
        guest.run(&format!("(while :; do {work}; done) &"))?;
    }
    let mut counted = Vec::new();
    for round in 0..ROUNDS {
        let balloon = json!({"desired_balloon": (round % 2) * (32 << 20)}).to_string();
        guest
            .machine
            .must("PUT", "/api/v1/vm.resize", Some(&balloon))?;
        sleep(Duration::from_millis(700));
        guest.machine.must("PUT", "/api/v1/vm.pause", None)?;
        let before = guest_memory_checksum(guest.machine.pid(), MEMORY)?;
        sleep(Duration::from_millis(700));
        let after = guest_memory_checksum(guest.machine.pid(), MEMORY)?;
        ensure!(before == after, "Round {round}: the memory has changed");
        counted.push([
            guest.counter("disk", "read_ops")?,
            guest.counter("disk", "write_ops")?,
            guest.counter("net", "rx_frames")?,
            guest.counter("net", "tx_frames")?,
        ]);
        guest.machine.must("PUT", "/api/v1/vm.resume", None)?;
    }
    drop(unrest);
    // What had nothing to do was not put to the test.
    let all_grew = counted[0]
        .iter()
        .zip(counted[counted.len() - 1])
        .all(|(&first, last)| first < last);
    ensure!(all_grew, "Operations by pause: {counted:?}");
    let complaints = guest.run("dmesg | grep -E 'I/O error|lockup|stall' || true")?;
    ensure!(
        complaints.is_empty(),
        "The guest's kernel says:\n{complaints}"
    );
    Ok(())
}
