//! Debian as a guest: its root file system, the same as a qcow2 image, and an
//! initramfs that loads the drivers of a virtio guest and goes there. The host
//! takes programs from the same file system.

mod efi;

pub(super) use efi::firmware;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Cpio;
use super::host_image::compress;
use super::kernel::Kernel;
use super::packages;
use super::stamp::{self, Inputs};
use crate::command::{command, output};
use crate::progress::step;
use crate::tree::Tree;

const INIT: &str = include_str!("guest-init.sh");
const SHELL: &str = include_str!("shell.sh");
const SET_UP: &str = include_str!("set-up.sh");

/// The release.
const SUITE: &str = "bookworm";

/// What is there beside what every Debian has.
const INCLUDE: &str = "systemd,systemd-sysv,udev,dbus,login,passwd,kmod,iproute2,iputils-ping,\
                       fio,iperf3,socat,stress-ng,qemu-utils";

/// What nobody reads in a test.
const EXCLUDE: [&str; 3] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
];

/// Size of the root file system, most of it free.
const SIZE: &str = "1G";

/// Drivers by their path in the distribution, in the order of loading. These
/// make a host see its disks as well.
pub const DISK_MODULES: [&str; 6] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
];

/// And these are for guests alone.
const GUEST_MODULES: [&str; 12] = [
    // systemd asks for these two.
    "fs/autofs/autofs4",
    "fs/binfmt_misc",
    "fs/overlayfs/overlay",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/char/virtio_console",
    "drivers/char/hw_random/virtio-rng",
    "drivers/virtio/virtio_balloon",
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
];

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Debian {
    /// The root file system, an ext4 image.
    pub root: PathBuf,
    /// A file system with `root.raw` and `root.qcow2`, copies of it, and room.
    pub work: PathBuf,
    /// The guest's initramfs.
    pub initramfs: PathBuf,
    /// EDK2, as Debian builds it for Cloud Hypervisor.
    pub firmware: PathBuf,
    /// A disk that it boots: boot loader, kernel and initramfs in a partition,
    /// the root file system in the next.
    pub efi_disk: PathBuf,
}

impl Debian {
    /// Makes what is missing or out of date.
    pub fn build(tree: &Tree, kernel: &Kernel) -> Result<Debian> {
        packages::ensure_installed_with(packages::DEBIAN_GUEST)?;
        let cache = tree.cache();
        let debian = Debian {
            root: cache.join("debian.img"),
            work: cache.join("debian-work.img"),
            initramfs: cache.join(format!("debian-{}.cpio.gz", kernel.release)),
            firmware: efi::firmware(tree)?,
            efi_disk: cache.join("debian-efi.img"),
        };
        let root_hash = Inputs::new()
            .value(SUITE)
            .value(INCLUDE)
            .value(EXCLUDE.join(","))
            .value(SIZE)
            .value(SET_UP)
            .value(SHELL)
            .hash();
        stamp::unless_current(&debian.root, &root_hash, || {
            step("Making a Debian root file system", || {
                make_root(&cache, &debian.root)
            })
        })?;
        stamp::unless_current(&debian.work, &root_hash, || {
            step("Making disk images of it", || {
                make_work(&cache, &debian.root, &debian.work)
            })
        })?;
        let busybox = Path::new("/bin/busybox");
        let hash = Inputs::new()
            .value(INIT)
            .value(&kernel.version)
            .value(DISK_MODULES.join(","))
            .value(GUEST_MODULES.join(","))
            .file(busybox)?
            .hash();
        stamp::unless_current(&debian.initramfs, &hash, || {
            pack_initramfs(kernel, busybox, &debian.initramfs)
        })?;
        efi::build(tree, kernel, &debian, &root_hash)?;
        Ok(debian)
    }
}

fn make_root(cache: &Path, image: &Path) -> Result<()> {
    let shell = cache.join("debian-shell");
    let set_up = cache.join("debian-set-up");
    fs::write(&shell, SHELL).with_context(|| format!("Cannot write {}", shell.display()))?;
    fs::write(&set_up, SET_UP).with_context(|| format!("Cannot write {}", set_up.display()))?;
    let partial = image.with_extension("partial");
    let _ = fs::remove_file(&partial);
    let mut make = command("mmdebstrap", ["--variant=minbase", "--quiet"]);
    make.args(["--format=null", &format!("--include={INCLUDE}")]);
    for path in EXCLUDE {
        make.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    make.arg(format!("--customize-hook=sh '{}' \"$1\"", set_up.display()))
        .arg(SUITE)
        .env("LAB_SHELL", &shell)
        .env("LAB_IMAGE", &partial)
        .env("LAB_SIZE", SIZE);
    output(&mut make)?;
    for path in [shell, set_up] {
        let _ = fs::remove_file(path);
    }
    fs::rename(&partial, image).with_context(|| format!("Cannot make {}", image.display()))
}

fn make_work(cache: &Path, root: &Path, image: &Path) -> Result<()> {
    let content = cache.join("debian-work");
    if content.exists() {
        fs::remove_dir_all(&content)?;
    }
    fs::create_dir_all(&content)?;
    output(
        command("qemu-img", ["convert", "-O", "qcow2"]).args([root, &content.join("root.qcow2")]),
    )?;
    output(command("cp", ["--sparse=always"]).args([root, &content.join("root.raw")]))?;
    let partial = image.with_extension("partial");
    let _ = fs::remove_file(&partial);
    output(
        command("mke2fs", ["-q", "-t", "ext4", "-L", "work", "-d"])
            .args([&content, &partial])
            .arg("4G"),
    )?;
    fs::remove_dir_all(&content)?;
    fs::rename(&partial, image).with_context(|| format!("Cannot make {}", image.display()))
}

fn pack_initramfs(kernel: &Kernel, busybox: &Path, to: &Path) -> Result<()> {
    let mut archive = Cpio::new()
        .device("/dev/console", 5, 1)
        .file("/init", 0o755, INIT.as_bytes())
        .copy("/bin/busybox", 0o755, busybox)?;
    for folder in ["/proc", "/sys", "/root", "/disk", "/changes"] {
        archive = archive.folder(folder);
    }
    let mut order = String::new();
    for path in DISK_MODULES.iter().chain(&GUEST_MODULES) {
        let name = path.rsplit('/').next().unwrap_or(path);
        order.push_str(&format!("{name}\n"));
        archive = archive.copy(
            &format!("/modules/{name}.ko"),
            0o644,
            &kernel.stock_module(path)?,
        )?;
    }
    compress(
        &archive
            .file("/modules/order", 0o644, order.as_bytes())
            .finish(),
        to,
    )
}
