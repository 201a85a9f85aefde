//! The root file system of an emulated host, an initramfs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Cpio;
use super::kernel::Kernel;
use super::stamp::{self, Inputs};
use crate::command::{command, output};
use crate::host::Modules;
use crate::progress::step;
use crate::tree::Tree;

const INIT: &str = include_str!("host-init.sh");
const MOTD: &str = include_str!("host-motd.txt");

/// Modules beside KVM's own, by their path in the distribution; trials that
/// need the second load it.
const STOCK_MODULES: [&str; 2] = ["virt/lib/irqbypass", "drivers/net/tun"];

/// Drivers that guests load, in the order in which they do, as far as the
/// series has them as modules.
const GUEST_MODULES: [&str; 20] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "drivers/char/virtio_console",
    "drivers/char/hw_random/rng-core",
    "drivers/char/hw_random/virtio-rng",
    "drivers/virtio/virtio_balloon",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
    "drivers/acpi/button",
    "drivers/input/evdev",
    "drivers/misc/pvpanic/pvpanic",
    "drivers/misc/pvpanic/pvpanic-pci",
];

/// KVM's modules by their path in the distribution.
const KVM_MODULES: [&str; 3] = [
    "arch/x86/kvm/kvm",
    "arch/x86/kvm/kvm-intel",
    "arch/x86/kvm/kvm-amd",
];

/// The folder of what a host loads.
const LOADED: &str = "/lab/modules";

/// The folder of what its guests load, numbered.
const DRIVERS: &str = "/lab/guest/modules";

/// The folder of what it does not load.
const SPARE: &str = "/lab/stock";

/// Makes the image unless it is current; returns its path.
pub fn build(tree: &Tree, kernel: &Kernel, modules: &Modules, guest: &Path) -> Result<PathBuf> {
    let image = tree.cache().join(format!(
        "host-{}-{}.cpio.gz",
        kernel.release,
        modules.as_str()
    ));
    let bin = tree.bin();
    let busybox = Path::new("/bin/busybox");
    let mut inputs = Inputs::new()
        .value(INIT)
        .value(MOTD)
        .value(&kernel.release)
        .value(&kernel.version)
        .value([&STOCK_MODULES[..], &GUEST_MODULES].concat().join(" "))
        .folder(&bin)?
        .file(guest)?
        .file(busybox)?;
    if let Modules::Patched(folder) = modules {
        inputs = inputs.folder(folder)?;
    }
    let hash = inputs.hash();
    stamp::unless_current(&image, &hash, || {
        step(
            &format!("Packing the host's image, {} modules", modules.as_str()),
            || pack(&image, kernel, modules, &bin, guest, busybox),
        )
    })?;
    Ok(image)
}

fn pack(
    image: &Path,
    kernel: &Kernel,
    modules: &Modules,
    bin: &Path,
    guest: &Path,
    busybox: &Path,
) -> Result<()> {
    let mut archive = Cpio::new()
        .device("/dev/console", 5, 1)
        .file("/init", 0o755, INIT.as_bytes())
        .file("/lab/motd", 0o644, MOTD.as_bytes())
        .folder("/proc")
        .folder("/sys")
        .folder("/tmp")
        .copy("/bin/busybox", 0o755, busybox)?
        .copy("/lab/guest/vmlinuz", 0o644, &kernel.bzimage())?
        .copy("/lab/guest/initramfs", 0o644, guest)?;
    for program in stamp::files_below(bin)? {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        archive = archive.copy(&format!("/lab/bin/{name}"), 0o755, &program)?;
    }
    for path in STOCK_MODULES {
        archive = add_stock_module(archive, kernel, path, LOADED, "")?;
    }
    for (number, path) in GUEST_MODULES.iter().enumerate() {
        if !kernel.has_built_in(path)? {
            let prefix = format!("{number:02}-");
            archive = add_stock_module(archive, kernel, path, DRIVERS, &prefix)?;
        }
    }
    for path in KVM_MODULES {
        archive = match modules {
            Modules::Stock => add_stock_module(archive, kernel, path, LOADED, "")?,
            Modules::Patched(folder) => {
                let name = module_file(path);
                // Beside ours the distribution's own, for a guest to load.
                add_stock_module(archive, kernel, path, SPARE, "")?.copy(
                    &format!("{LOADED}/{name}"),
                    0o644,
                    &folder.join(&name),
                )?
            }
        };
    }
    compress(&archive.finish(), image)
}

fn add_stock_module(
    archive: Cpio,
    kernel: &Kernel,
    path: &str,
    folder: &str,
    prefix: &str,
) -> Result<Cpio> {
    let to = format!("{folder}/{prefix}{}", module_file(path));
    let from = kernel.stock_module(path)?;
    if from.extension().is_some_and(|suffix| suffix == "xz") {
        let content = output(command("xz", ["-dc"]).arg(&from))?;
        return Ok(archive.file(&to, 0o644, &content));
    }
    archive.copy(&to, 0o644, &from)
}

fn module_file(path: &str) -> String {
    format!("{}.ko", path.rsplit('/').next().unwrap_or(path))
}

/// Compresses lightly: Bochs reads its disc slowly and unpacks slowly too.
pub fn compress(archive: &[u8], to: &Path) -> Result<()> {
    let plain = to.with_extension("plain");
    fs::write(&plain, archive).with_context(|| format!("Cannot write {}", plain.display()))?;
    let packed = output(command("gzip", ["-1", "-n", "-c"]).arg(&plain))?;
    // In one step: another run may be booting from it.
    fs::write(&plain, packed).with_context(|| format!("Cannot write {}", plain.display()))?;
    fs::rename(&plain, to).with_context(|| format!("Cannot make {}", to.display()))
}
