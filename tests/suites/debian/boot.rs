//! The whole of Debian, from each kind of disk, to its login prompt.

use anyhow::{Result, ensure};

use super::guest::{BOOT, Guest, ROOT_DISK, Spec, WORK, run_on_host};
use crate::site::Site;

/// Said before the kernel takes to memory-mapped configuration space, which is
/// the only kind there is.
const NO_PORTS: &str = "PCI: Fatal: No config space access function found";

/// The disk of its root, and that nothing failed on the way.
pub fn looks_well(guest: &mut Guest, root: &str) -> Result<()> {
    let state = guest.begin("systemctl is-system-running --wait")?;
    let (state, _) = guest.end(&state, BOOT)?;
    let failed = guest.run("systemctl --failed --plain --no-legend")?;
    ensure!(
        state == "running" && failed.is_empty(),
        "systemd says {state}; failed: {failed}"
    );
    let mounted = guest.run("findmnt -n -o SOURCE,FSTYPE /")?;
    ensure!(
        mounted.split_whitespace().eq(root.split(' ')),
        "The root is {mounted}"
    );
    let errors = guest.run("dmesg --level=emerg,alert,crit,err --notime")?;
    let errors: Vec<&str> = errors.lines().filter(|line| *line != NO_PORTS).collect();
    ensure!(errors.is_empty(), "The guest's kernel says {errors:?}");
    Ok(())
}

/// Boots from a writable disk, leaves a file and finds it after the next boot.
fn keeps_what_is_written(site: &Site, disk: &str) -> Result<()> {
    let mut guest = Guest::boot(site, &Spec::systemd(disk))?;
    looks_well(&mut guest, "/dev/vda ext4")?;
    guest.run("seq 100000 >/root/kept")?;
    guest.hold_accounts()?;
    guest.power_off("systemctl poweroff")?;
    let spec = Spec {
        overlay: false,
        root: disk.to_owned(),
        ..Spec::shell()
    };
    let mut guest = Guest::boot(site, &spec)?;
    guest.run("seq 100000 | cmp - /root/kept")?;
    // Mounted anew after an unmount: the journal had nothing to repair.
    let recovered = guest.run("dmesg | grep -c 'recovery complete' || true")?;
    ensure!(recovered == "0", "The root was not unmounted");
    guest.power_off("mount -o remount,ro /; echo o >/proc/sysrq-trigger")
}

pub fn debian_on_a_raw_disk_comes_to_its_login_prompt(site: &Site) -> Result<()> {
    keeps_what_is_written(site, &format!("path={WORK}/root.raw,image_type=raw"))
}

pub fn debian_on_a_qcow2_disk_comes_to_its_login_prompt(site: &Site) -> Result<()> {
    keeps_what_is_written(site, &format!("path={WORK}/root.qcow2"))?;
    run_on_host("qemu-img", &["check", &format!("{WORK}/root.qcow2")]).map(drop)
}

pub fn debian_on_a_read_only_disk_comes_to_its_login_prompt(site: &Site) -> Result<()> {
    let spec = Spec {
        overlay: true,
        ..Spec::systemd(&format!("path={ROOT_DISK},readonly=on,image_type=raw"))
    };
    let mut guest = Guest::boot(site, &spec)?;
    looks_well(&mut guest, "root overlay")?;
    guest.run("test $(cat /sys/block/vda/ro) = 1")?;
    guest.run("seq 1000 >/root/kept && seq 1000 | cmp - /root/kept")?;
    guest.run("! dd if=/dev/zero of=/dev/vda bs=4096 count=1 oflag=direct")?;
    guest.hold_accounts()?;
    guest.power_off("systemctl poweroff")
}
