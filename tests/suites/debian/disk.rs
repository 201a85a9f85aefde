//! What is written to a disk is what is read, under load, by every way that the
//! VMM has of writing.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::guest::{Guest, Spec, WORK, run_on_host};
use crate::site::Site;

/// Size of a data disk.
const SIZE: u64 = 256 << 20;

/// How long one run of fio may take.
const FIO: Duration = Duration::from_secs(1500);

/// The data disks: a raw image and a qcow2 one, both empty.
pub fn images() -> Result<[String; 2]> {
    let [raw, qcow2] = ["data.raw", "data.qcow2"].map(|name| format!("{WORK}/{name}"));
    for path in [&raw, &qcow2] {
        if Path::new(path).exists() {
            fs::remove_file(path).with_context(|| format!("Cannot remove {path}"))?;
        }
    }
    File::create(&raw)
        .and_then(|file| file.set_len(SIZE))
        .with_context(|| format!("Cannot make {raw}"))?;
    run_on_host(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &qcow2, &SIZE.to_string()],
    )?;
    Ok([raw, qcow2])
}

/// Several jobs on both disks at once. `more` says what of fio's work.
fn fio(site: &Site, more: &str) -> String {
    let size = if site.is_long() { 32 } else { 2 };
    format!(
        "fio --thread --ioengine=libaio --iodepth=16 --rw=randwrite --bs=4k --numjobs=3 \
         --size={size}m --offset_increment={size}m --verify=crc32c --verify_fatal=1 \
         --group_reporting --minimal {more} \
         --name=raw --filename=/dev/vdb --name=qcow2 --filename=/dev/vdc"
    )
}

fn rings(guest: &Guest) -> Result<usize> {
    let mut rings = 0;
    for entry in fs::read_dir(format!("/proc/{}/fd", guest.pid()))? {
        let target = fs::read_link(entry?.path());
        rings += usize::from(target.is_ok_and(|path| path.ends_with("anon_inode:[io_uring]")));
    }
    Ok(rings)
}

fn verified(site: &Site, under: Vec<String>) -> Result<()> {
    let [raw, qcow2] = images()?;
    let with_ring = under.is_empty();
    let spec = Spec {
        vcpus: 2,
        under,
        ..Spec::shell().with_disks(&[
            format!("path={raw},image_type=raw,num_queues=2"),
            format!("path={qcow2},num_queues=2"),
        ])
    };
    let mut guest = Guest::boot(site, &spec)?;
    ensure!(
        (rings(&guest)? > 0) == with_ring,
        "{} rings of io_uring are open",
        rings(&guest)?
    );
    guest.run("stress-ng --quiet --cpu 1 --vm 1 --vm-bytes 32m & load=$!")?;
    guest.run_within(&fio(site, "--direct=1"), FIO)?;
    guest.run_within(&fio(site, "--direct=0 --fsync=64 --randseed=7"), FIO)?;
    guest.run("kill $load; wait $load; true")?;
    guest.hold_accounts()?;
    guest.power_off("echo o >/proc/sysrq-trigger")?;

    fs::write("/proc/sys/vm/drop_caches", "3").context("Cannot drop the host's caches")?;
    run_on_host("qemu-img", &["check", "-q", &qcow2])?;
    let spec = Spec::shell().with_disks(&[
        format!("path={raw},image_type=raw,readonly=on"),
        format!("path={qcow2},readonly=on"),
    ]);
    let mut guest = Guest::boot(site, &spec)?;
    let again = fio(site, "--direct=1 --randseed=7 --verify_only");
    guest.run_within(&again, FIO).map(drop)
}

pub fn fio_verifies_what_it_wrote_through_io_uring(site: &Site) -> Result<()> {
    verified(site, Vec::new())
}

pub fn fio_verifies_what_it_wrote_without_io_uring(site: &Site) -> Result<()> {
    verified(site, site.without_io_uring())
}
