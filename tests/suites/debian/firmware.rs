//! Firmware: EDK2, as Debian builds it for Cloud Hypervisor. It finds the disk
//! and starts the boot loader that is there, and that starts Debian.

use anyhow::{Context, Result, ensure};

use super::boot::looks_well;
use super::guest::{Guest, Spec};
use super::net;
use crate::site::Site;

const LOADER: &str = "Welcome to GRUB!";

/// Accesses that a boot may waste. Whoever waits for a device that is not there
/// asks for it thousands of times.
const FEW: u64 = 1000;

/// Accesses that no device answered.
fn unanswered(guest: &Guest) -> Result<u64> {
    let stats = guest.must("GET", "/exit-stats", None)?.json()?;
    let kinds = stats["vmm"]["exits"].as_array().context("No exits")?;
    let rows = kinds.iter().filter_map(|kind| kind["devices"].as_array());
    Ok(rows
        .flatten()
        .filter(|row| row["id"] == "unassigned")
        .filter_map(|row| row["exits"].as_u64())
        .sum())
}

pub fn firmware_boots_debian_from_its_disk(site: &Site) -> Result<()> {
    // The firmware has drivers for some of these, the kernel for all.
    let mut spec = Spec::firmware().with(&[
        "--net",
        &net::device(),
        "--balloon",
        "size=16M",
        "--watchdog",
    ]);
    spec.vcpus = 2;
    let mut guest = Guest::boot(site, &spec)?;
    let unanswered = unanswered(&guest)?;
    ensure!(
        unanswered < FEW,
        "{unanswered} accesses to devices that are not there"
    );
    looks_well(&mut guest, "root overlay")?;
    let shown = guest.serial().text();
    for (who, word) in [
        ("firmware", "BdsDxe: starting Boot"),
        ("boot loader", LOADER),
    ] {
        ensure!(shown.contains(word), "The {who} does not say {word:?}");
    }
    guest.run("test $(cat /sys/firmware/efi/fw_platform_size) = 64")?;
    guest.run("dmesg | grep -q 'efi: EFI .* by .*EDK II'")?;
    guest.run("test $(nproc) = 2")?;
    // The firmware took the tables that the VMM made, and passed them on.
    guest.run("grep -q EXITVM /sys/firmware/acpi/tables/APIC")?;
    let names = guest.run("cat /sys/class/dmi/id/sys_vendor")?;
    ensure!(names == "Cloud Hypervisor", "SMBIOS says {names:?}");
    net::set_up(&mut guest)?;
    guest.run(&format!("ping -c 3 -W 60 {}", net::HOST))?;
    guest.hold_accounts()?;
    // Linux leaves both to the firmware on machines like this one.
    guest.reboot_from_inside()?;
    let loaded = guest.serial().text().matches(LOADER).count();
    ensure!(loaded == 2, "The boot loader ran {loaded} times");
    guest.power_off("systemctl poweroff")
}
