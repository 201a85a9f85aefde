//! Every device at work at once, and every exit counted.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::disk::images;
use super::guest::{Guest, Spec};
use super::{net, plug, vsock};
use crate::site::Site;

/// How long the work may take.
const WORKING: Duration = Duration::from_secs(1500);

/// Writes to both data disks and verifies, in the background.
const DISKS_AT_WORK: [&str; 4] = [
    "for disk in vdb vdc; do {",
    "fio --thread --name=$disk --filename=/dev/$disk --ioengine=libaio --iodepth=8 --direct=1",
    "--rw=randwrite --bs=4k --size=8m --verify=crc32c --minimal >/tmp/$disk;",
    "echo $? >/tmp/$disk.status; } & done",
];

pub fn exits_are_counted_with_all_devices_at_work(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    let [raw, qcow2] = images()?;
    let socket = dir.join("vsock");
    let console = dir.join("console");
    let spec = Spec {
        vcpus: 2,
        ..Spec::shell()
            .with_disks(&[
                format!("path={raw},image_type=raw,num_queues=2"),
                format!("path={qcow2}"),
            ])
            .with(&[
                "--net",
                &format!("{},num_queues=4", net::device()),
                "--vsock",
                &format!("cid=3,socket={}", socket.display()),
                "--balloon",
                "size=16M,free_page_reporting=on",
                "--watchdog",
                "--console",
                &format!("file={}", console.display()),
            ])
    };
    let mut guest = Guest::boot(site, &spec)?;
    net::set_up(&mut guest)?;
    guest.run("socat VSOCK-LISTEN:5000,fork EXEC:cat & sleep 1")?;
    guest.run(&DISKS_AT_WORK.join(" "))?;
    let moved = net::iperf(&mut guest, "-t 3")?;
    ensure!(moved > 0, "iperf3 moved nothing");
    vsock::echo(&socket, 5000)?;
    guest.run("dd if=/dev/hwrng of=/dev/null bs=64 count=16 2>/dev/null")?;
    guest.run("echo by the console >/dev/hvc0")?;
    guest.ch_remote_text(&["resize", "--balloon", "64M"])?;
    plug::once(&mut guest)?;
    // All but the listener, which waits for ever.
    guest.run_within(
        "kill $(pidof socat); wait; cat /tmp/vd?; \
         grep -qx 0 /tmp/vdb.status && grep -qx 0 /tmp/vdc.status",
        WORKING,
    )?;
    let said = fs::read_to_string(&console).context("Cannot read the console's file")?;
    ensure!(
        said.trim_end() == "by the console",
        "The console carried {said:?}"
    );
    let exits = guest.hold_accounts()?;
    ensure!(exits > 10_000, "All that work took {exits} exits");
    guest.run(&DISKS_AT_WORK.join(" "))?;
    guest.reboot_from_outside()
}
