//! A Debian that firmware boots: EDK2 as Debian builds it for Cloud Hypervisor,
//! and a disk that begins with an EFI system partition.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::super::kernel::Kernel;
use super::super::packages;
use super::super::stamp::{self, Inputs};
use super::Debian;
use crate::command::{command, fed, output};
use crate::progress::step;
use crate::tree::Tree;

/// The package with the firmware, which Debian 12 does not have, and the file
/// in it.
const FIRMWARE: (&str, &str) = (
    "cloudhv-efi-x86-64",
    "usr/share/cloudhv-efi-x86-64/CLOUDHV.fd",
);
const FIRMWARE_SUITE: &str = "testing";

/// The package with the boot loader as Debian's machines have it, and the file
/// in it.
const LOADER: (&str, &str) = (
    "grub-efi-amd64-signed",
    "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
);

/// Where that loader looks for its configuration.
const LOADER_CONFIG: &str = "::/EFI/debian/grub.cfg";

const CONFIG: &str = "\
set timeout=0
menuentry Debian {
    linux /vmlinuz console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 lab.disk=/dev/vda2 lab.root=overlay
    initrd /initrd
}
";

/// Sectors of 512 bytes in a MiB.
const MIB: u64 = 2048;
/// Size of the EFI system partition in MiB, and where it and the root begin.
const ESP_MIB: u64 = 64;
const ESP_START: u64 = MIB;
const ROOT_START: u64 = ESP_START + ESP_MIB * MIB;
/// For the second copy of the partition table.
const TAIL: u64 = MIB;

/// The firmware's file, downloaded if it is not here yet.
pub fn firmware(tree: &Tree) -> Result<PathBuf> {
    let (package, file) = FIRMWARE;
    Ok(packages::unpacked_from(tree, FIRMWARE_SUITE, package)?.join(file))
}

/// Makes the disk with the root file system and the initramfs that are there
/// already, unless it is current.
pub(super) fn build(tree: &Tree, kernel: &Kernel, debian: &Debian, root_hash: &str) -> Result<()> {
    let (package, file) = LOADER;
    let loader = packages::unpacked(tree, package)?.join(file);
    let hash = Inputs::new()
        .value(CONFIG)
        .value(&kernel.version)
        .file(&loader)?
        .file(&debian.initramfs)?
        .value(root_hash)
        .hash();
    stamp::unless_current(&debian.efi_disk, &hash, || {
        step("Making a disk that firmware boots", || {
            make(&loader, &kernel.bzimage(), debian)
        })
    })?;
    Ok(())
}

fn make(loader: &Path, kernel: &Path, debian: &Debian) -> Result<()> {
    let (root, disk) = (&debian.root, &debian.efi_disk);
    let partial = disk.with_extension("partial");
    let config = disk.with_extension("cfg");
    let _ = fs::remove_file(&partial);
    let length = fs::metadata(root)?.len();
    ensure!(
        length % (MIB * 512) == 0,
        "The root file system has {length} bytes, which are no whole MiB"
    );
    let sectors = ROOT_START + length / 512 + TAIL;
    fs::File::create(&partial)?.set_len(sectors * 512)?;
    let table = format!(
        "label: gpt\nstart={ESP_START}, size={}, type=uefi\nstart={ROOT_START}, size={}, type=linux\n",
        ESP_MIB * MIB,
        length / 512
    );
    fed(command("sfdisk", ["--quiet"]).arg(&partial), &table)?;
    fs::write(&config, CONFIG)?;

    // mtools name a place in a file so.
    let esp = format!("{}@@{}", partial.display(), ESP_START * 512);
    let kib = (ESP_MIB * 1024).to_string();
    let offset = format!("--offset={ESP_START}");
    output(
        command("mkfs.vfat", ["-F", "32", "-s", "1", "-n", "ESP", &offset])
            .args([&partial])
            .arg(kib),
    )?;
    output(&mut command(
        "mmd",
        ["-i", &esp, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"],
    ))?;
    for (from, to) in [
        (loader, "::/EFI/BOOT/BOOTX64.EFI"),
        (&config, LOADER_CONFIG),
        (kernel, "::/vmlinuz"),
        (&debian.initramfs, "::/initrd"),
    ] {
        output(command("mcopy", ["-i", &esp]).arg(from).arg(to))?;
    }
    fs::remove_file(&config)?;
    let root_at = format!("seek={}", ROOT_START / MIB);
    output(
        command(
            "dd",
            ["bs=1M", "conv=notrunc,sparse", "status=none", &root_at],
        )
        .arg(format!("if={}", root.display()))
        .arg(format!("of={}", partial.display())),
    )?;
    fs::rename(&partial, disk).with_context(|| format!("Cannot make {}", disk.display()))
}
