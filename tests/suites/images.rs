//! Disk images and other files that a client names, good and bad ones.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::vmm::Machine;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::shell::{Guest, sparse};
use crate::site::Site;
use crate::{Suite, trials};

pub const SUITE: Suite = Suite {
    name: "images",
    applies: Site::tries_devices,
    trials: trials![
        files_that_can_be_no_disk_are_refused_and_the_guest_goes_on,
        fifo_as_kernel_is_refused_and_sigterm_ends_the_vmm,
        qcow2_image_over_a_base_keeps_what_two_queues_write,
    ],
};

/// Nothing here takes longer, unless it waits for what never comes.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A qcow2 image of 1 MiB in clusters of 64 KiB without data: header, L1 table,
/// refcount table and a block of it.
fn write_qcow2(path: &Path, backing: &str) -> Result<()> {
    const CLUSTER: u64 = 1 << 16;
    let file = File::create(path)?;
    file.set_len(4 * CLUSTER)?;
    let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
    header.extend(if backing.is_empty() { 0u64 } else { 512 }.to_be_bytes());
    header.extend((backing.len() as u32).to_be_bytes());
    header.extend(16u32.to_be_bytes()); // cluster_bits
    header.extend((1u64 << 20).to_be_bytes()); // size
    header.extend(0u32.to_be_bytes()); // crypt_method
    header.extend(1u32.to_be_bytes()); // l1_size
    header.extend(CLUSTER.to_be_bytes());
    header.extend((2 * CLUSTER).to_be_bytes()); // refcount table
    header.extend(1u32.to_be_bytes());
    header.extend([0; 4 + 8]); // snapshots
    header.extend([0; 24]); // features
    header.extend(4u32.to_be_bytes()); // refcount_order
    header.extend(104u32.to_be_bytes()); // header_length
    file.write_all_at(&header, 0)?;
    file.write_all_at(backing.as_bytes(), 512)?;
    file.write_all_at(&(3 * CLUSTER).to_be_bytes(), 2 * CLUSTER)?;
    file.write_all_at(&[0, 1, 0, 1, 0, 1, 0, 1], 3 * CLUSTER)?;
    Ok(())
}

fn make_fifo(path: &Path) -> Result<()> {
    let mode = 0o600.into();
    Ok(rustix::fs::mkfifoat(rustix::fs::CWD, path, mode)?)
}

fn files_that_can_be_no_disk_are_refused_and_the_guest_goes_on(site: &Site) -> Result<()> {
    let mut guest = Guest::boot_with(
        site,
        |dir| sparse(&dir.join("disk"), 1 << 20),
        |dir| json!({"disks": [{"path": dir.join("disk"), "id": "data"}]}),
    )?;
    let dir = guest.dir.clone();
    make_fifo(&dir.join("fifo"))?;
    let _listener = UnixListener::bind(dir.join("listener"))?;
    fs::write(dir.join("empty"), "")?;
    write_qcow2(&dir.join("self.qcow2"), "self.qcow2")?;
    write_qcow2(&dir.join("a"), "b")?;
    write_qcow2(&dir.join("b"), "a")?;
    let disk = |name: &str, more: Value| {
        let mut disk = json!({"path": dir.join(name), "backing_files": true});
        if let (Some(disk), Value::Object(more)) = (disk.as_object_mut(), more) {
            disk.extend(more);
        }
        disk
    };
    for (disk, expected) in [
        (disk("fifo", json!({})), "it is a FIFO"),
        (disk("listener", json!({})), "it is a socket"),
        (disk("", json!({})), "it is a directory"),
        (disk("empty", json!({})), "less than a sector"),
        (json!({"path": "/dev/null"}), "it is a character device"),
        (disk("self.qcow2", json!({})), "self.qcow2 -> "),
        (disk("a", json!({})), "lead back"),
        (disk("a", json!({"image_type": "Raw"})), "is a qcow2 image"),
        (disk("a", json!({"backing_files": false})), "is off"),
        (
            disk("disk", json!({})),
            "in use by the disk data of this VM",
        ),
        (
            disk("disk", json!({"serial": "longer than twenty bytes"})),
            "at most 20 bytes",
        ),
    ] {
        let started = Instant::now();
        let body = disk.to_string();
        let refused = guest
            .machine
            .api("PUT", "/api/v1/vm.add-disk", Some(&body))?;
        ensure!(
            matches!(refused.status, 400 | 409) && refused.body.contains(expected),
            "{body}: {} {}",
            refused.status,
            refused.body
        );
        ensure!(started.elapsed() < AT_ONCE, "{body}: slow");
    }
    let info = guest.machine.must("GET", "/api/v1/vm.info", None)?.json()?;
    let disks = &info["config"]["disks"];
    ensure!(
        disks.as_array().is_some_and(|disks| disks.len() == 1) && disks[0]["image_type"] == "Raw",
        "{disks}"
    );
    guest.run("dd if=/dev/vda of=/dev/null bs=4k count=1 2>/dev/null")?;
    ensure!(guest.counter("data", "io_errors")? == 0, "I/O errors");
    ensure!(guest.counter("data", "driver_faults")? == 0, "Faults");
    guest.machine.shut_down()?;
    Ok(())
}

fn fifo_as_kernel_is_refused_and_sigterm_ends_the_vmm(site: &Site) -> Result<()> {
    let dir = site.fresh_dir()?;
    make_fifo(&dir.join("fifo"))?;
    let mut machine = Machine::idle(&site.bin(), &dir)?;
    let kernel = site.kernel().display().to_string();
    let fifo = dir.join("fifo").display().to_string();
    for config in [
        json!({"payload": {"kernel": fifo}}),
        json!({"payload": {"firmware": fifo}}),
        json!({"payload": {"kernel": kernel, "initramfs": fifo}}),
        json!({"payload": {"kernel": kernel}, "rng": {"src": fifo}}),
    ] {
        let started = Instant::now();
        machine.must("PUT", "/api/v1/vm.create", Some(&config.to_string()))?;
        let refused = machine.api("PUT", "/api/v1/vm.boot", None)?;
        ensure!(
            refused.status >= 400 && refused.body.contains("it is a FIFO"),
            "{config}: {} {}",
            refused.status,
            refused.body
        );
        ensure!(started.elapsed() < AT_ONCE, "{config}: slow");
        machine.must("PUT", "/api/v1/vm.delete", None)?;
    }
    if let Some(pid) = Pid::from_raw(machine.pid().cast_signed()) {
        kill_process(pid, Signal::TERM)?;
    }
    machine.wait_for_end()?;
    Ok(())
}

fn qcow2_image_over_a_base_keeps_what_two_queues_write(site: &Site) -> Result<()> {
    let mut guest = Guest::boot_with(
        site,
        |dir| {
            sparse(&dir.join("base"), 1 << 20)?;
            fs::write(dir.join("base"), vec![b'b'; 1 << 20])?;
            write_qcow2(&dir.join("top"), "base")
        },
        |dir| {
            json!({
                "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
                "disks": [{
                    "path": dir.join("top"), "id": "top", "num_queues": 2,
                    "backing_files": true, "serial": "twenty bytes exactly",
                }],
            })
        },
    )?;
    // A write by each vCPU, so to each queue, and one sector alone.
    guest.run(
        "for cpu in 0 1; do yes $cpu | taskset -c $cpu dd of=/dev/vda bs=64k seek=$((2 * cpu)) \
         count=2 iflag=fullblock conv=fsync 2>/dev/null; done; \
         yes z | dd of=/dev/vda bs=512 seek=2047 count=1 iflag=fullblock conv=fsync 2>/dev/null; \
         blkdiscard -o 65536 -l 65536 /dev/vda 2>/dev/null; sync",
    )?;
    for (sector, shown) in [("0", "0"), ("256", "1"), ("600", "b"), ("2047", "z")] {
        let said = guest.run(&format!(
            "dd if=/dev/vda bs=512 skip={sector} count=1 iflag=direct 2>/dev/null | head -c 1"
        ))?;
        ensure!(said == shown, "Sector {sector} begins with {said:?}");
    }
    ensure!(guest.counter("top", "io_errors")? == 0, "I/O errors");
    let info = guest.machine.must("GET", "/api/v1/vm.info", None)?.json()?;
    ensure!(
        info["config"]["disks"][0]["image_type"] == "Qcow2",
        "{}",
        info["config"]["disks"]
    );
    let base = fs::read(guest.dir.join("base"))?;
    ensure!(base.iter().all(|byte| *byte == b'b'), "The base changed");
    guest.machine.shut_down()?;
    Ok(())
}
