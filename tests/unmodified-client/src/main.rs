//! A client that somebody else made from Cloud Hypervisor's API description,
//! unmodified: every call that the VMM supports, with its answers parsed, and
//! a refusal of every call that it does not.
//!
//!     unmodified-client SOCKET FOLDER [KERNEL]
//!
//! Without a kernel, the VMM is one that cannot boot: `api_without_kvm`.
#![forbid(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cloud_hypervisor_client::apis::{DefaultApi, Error};
use cloud_hypervisor_client::models::{
    BalloonConfig, ConsoleConfig, ConsoleMode, CpuTopology, CpusConfig, DebugConsoleConfig,
    DiskConfig, ImageType, LandlockConfig, MemoryConfig, NetConfig, PayloadConfig, PlatformConfig,
    RateLimitGroupConfig, RateLimiterConfig, RngConfig, SerialConfig, TokenBucket, VmConfig,
    VmCoredumpData, VmRemoveDevice, VmResize, VmResizeDisk, VmResizeZone, VmSnapshotConfig,
    VmState, VsockConfig,
};
use cloud_hypervisor_client::{SocketBasedApiClient, socket_based_api_client};

const MIB: i64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (socket, folder, kernel) = match &args[..] {
        [socket, folder] => (socket, folder, None),
        [socket, folder, kernel] => (socket, folder, Some(kernel)),
        _ => bail!("Usage: unmodified-client SOCKET FOLDER [KERNEL]"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = socket_based_api_client(socket);
        without_a_vm(&client).await?;
        match kernel {
            None => without_a_guest(&client, folder).await?,
            Some(kernel) => with_a_guest(&client, folder, kernel).await?,
        }
        refused(&client).await?;
        client.shutdown_vmm().await.context("vmm.shutdown")
    })
}

/// The status of an answer that is to be an error, and whether its body is the
/// list of messages that clients show.
fn status<T>(outcome: Result<T, Error>, call: &str) -> Result<u16> {
    match outcome {
        Ok(_) => bail!("{call} is accepted"),
        Err(Error::Api(error)) => {
            ensure!(
                error.body.starts_with("[\"") && error.body.ends_with("\"]"),
                "{call}: {}",
                error.body
            );
            Ok(error.code.as_u16())
        }
        Err(error) => Err(error).context(call.to_owned()),
    }
}

fn expect<T>(outcome: Result<T, Error>, call: &str, expected: u16) -> Result<()> {
    let found = status(outcome, call)?;
    ensure!(found == expected, "{call}: {found}, not {expected}");
    Ok(())
}

async fn without_a_vm(client: &SocketBasedApiClient) -> Result<()> {
    let ping = client.vmm_ping_get().await.context("vmm.ping")?;
    let major = ping.version.split('.').next().map(str::parse::<u32>);
    ensure!(
        matches!(major, Some(Ok(15..))),
        "The version is {}",
        ping.version
    );
    ensure!(
        ping.build_version.is_some() && ping.pid.is_some(),
        "{ping:?}"
    );
    expect(client.vm_info_get().await, "vm.info", 404)?;
    expect(client.boot_vm().await, "vm.boot", 404)?;
    client.delete_vm().await.context("vm.delete without a VM")
}

/// Every field that the client has and the VMM supports, and the others as
/// they are when they ask for nothing.
fn full(folder: &Path, kernel: &Path) -> Result<VmConfig> {
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    File::create(path("disk"))?.set_len(4 << 20)?;
    let bucket = || TokenBucket {
        size: MIB,
        one_time_burst: Some(MIB),
        refill_time: 100,
    };
    let limits = || RateLimiterConfig {
        bandwidth: Some(bucket()),
        ops: Some(bucket()),
    };
    Ok(VmConfig {
        cpus: Some(CpusConfig {
            topology: Some(CpuTopology {
                threads_per_core: Some(1),
                cores_per_die: Some(1),
                dies_per_package: Some(1),
                packages: Some(1),
            }),
            kvm_hyperv: Some(false),
            max_phys_bits: Some(46),
            nested: Some(true),
            ..CpusConfig::new(1, 1)
        }),
        memory: Some(MemoryConfig {
            hotplug_size: Some(0),
            mergeable: Some(false),
            hotplug_method: Some("Acpi".into()),
            shared: Some(true),
            hugepages: Some(false),
            prefault: Some(false),
            thp: Some(true),
            ..MemoryConfig::new(64 * MIB)
        }),
        payload: PayloadConfig {
            kernel: Some(kernel.to_string_lossy().into_owned()),
            ..PayloadConfig::new()
        },
        rate_limit_groups: Some(vec![RateLimitGroupConfig {
            id: "group".into(),
            rate_limiter_config: limits(),
        }]),
        disks: Some(vec![DiskConfig {
            path: Some(path("disk")),
            readonly: Some(false),
            direct: Some(false),
            iommu: Some(false),
            num_queues: Some(1),
            queue_size: Some(128),
            vhost_user: Some(false),
            pci_segment: Some(0),
            id: Some("data".into()),
            serial: Some("serial".into()),
            rate_limit_group: Some("group".into()),
            backing_files: Some(false),
            sparse: Some(true),
            image_type: Some(ImageType::Raw),
            ..DiskConfig::new()
        }]),
        net: Some(Vec::new()),
        rng: Some(RngConfig {
            iommu: Some(false),
            ..RngConfig::new("/dev/urandom".into())
        }),
        balloon: Some(BalloonConfig {
            deflate_on_oom: Some(true),
            free_page_reporting: Some(false),
            ..BalloonConfig::new(0)
        }),
        fs: Some(Vec::new()),
        pmem: Some(Vec::new()),
        serial: Some(SerialConfig::new(ConsoleMode::Null)),
        console: Some(ConsoleConfig::new(ConsoleMode::Off)),
        debug_console: Some(DebugConsoleConfig {
            file: Some(path("debug")),
            iobase: Some(0xe9),
            ..DebugConsoleConfig::new(ConsoleMode::File)
        }),
        devices: Some(Vec::new()),
        user_devices: Some(Vec::new()),
        vdpa: Some(Vec::new()),
        vsock: Some(VsockConfig {
            iommu: Some(false),
            ..VsockConfig::new(3, path("vsock"))
        }),
        numa: Some(Vec::new()),
        iommu: Some(false),
        watchdog: Some(true),
        pvpanic: Some(false),
        pci_segments: Some(Vec::new()),
        platform: Some(PlatformConfig {
            num_pci_segments: Some(1),
            iommu_address_width_bits: Some(64),
            serial_number: Some("number".into()),
            uuid: Some("6c1d8f0e-5a2b-4c3d-9e8f-001122334455".into()),
            oem_strings: Some(vec!["text".into()]),
            tdx: Some(false),
            sev_snp: Some(false),
            iommufd: Some(false),
            vfio_p2p_dma: Some(true),
            ..PlatformConfig::new()
        }),
        landlock_enable: Some(false),
        landlock_rules: None::<Vec<LandlockConfig>>,
        ..VmConfig::new(PayloadConfig::new())
    })
}

async fn without_a_guest(client: &SocketBasedApiClient, folder: &Path) -> Result<()> {
    let config = full(folder, Path::new("/kernel"))?;
    client
        .create_vm(config.clone())
        .await
        .context("vm.create")?;
    expect(client.create_vm(config).await, "a second vm.create", 500)?;
    let info = client.vm_info_get().await.context("vm.info")?;
    ensure!(info.state == VmState::Created, "{:?}", info.state);
    ensure!(info.memory_actual_size == Some(64 * MIB), "{info:?}");
    expect(client.vm_counters_get().await, "vm.counters", 500)?;
    for (call, outcome) in [
        ("vm.pause", client.pause_vm().await),
        ("vm.resume", client.resume_vm().await),
        ("vm.shutdown", client.shutdown_vm().await),
        ("vm.reboot", client.reboot_vm().await),
        ("vm.power-button", client.power_button_vm().await),
        ("vm.nmi", client.vmm_nmi_put().await),
    ] {
        let found = status(outcome, call)?;
        ensure!([404, 500].contains(&found), "{call}: {found}");
    }
    let gone = VmRemoveDevice {
        id: Some("nothing".into()),
    };
    expect(client.vm_remove_device_put(gone).await, "remove", 404)?;
    let data = VmRemoveDevice {
        id: Some("data".into()),
    };
    client.vm_remove_device_put(data).await.context("remove")?;
    let info = client.vm_info_get().await.context("vm.info")?;
    ensure!(
        info.config.disks.is_none_or(|disks| disks.is_empty()),
        "A disk is left"
    );
    client.delete_vm().await.context("vm.delete")
}

async fn with_a_guest(client: &SocketBasedApiClient, folder: &Path, kernel: &Path) -> Result<()> {
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    client
        .create_vm(full(folder, kernel)?)
        .await
        .context("vm.create")?;
    client.boot_vm().await.context("vm.boot")?;
    state_is(client, VmState::Running).await?;
    let info = client.vm_info_get().await.context("vm.info")?;
    let tree = info.device_tree.context("No device tree")?;
    for id in ["data", "_virtio-pci-data", "__serial", "__rng", "__balloon"] {
        ensure!(tree.contains_key(id), "{id} is not in {tree:?}");
    }
    // Before any I/O there are no latencies: 2^64-1 would not fit the type.
    let counters = client.vm_counters_get().await.context("vm.counters")?;
    ensure!(counters["data"]["read_ops"] == 0, "{counters:?}");

    client.pause_vm().await.context("vm.pause")?;
    state_is(client, VmState::Paused).await?;
    client.resume_vm().await.context("vm.resume")?;
    state_is(client, VmState::Running).await?;
    client.vmm_nmi_put().await.context("vm.nmi")?;
    client.power_button_vm().await.context("vm.power-button")?;

    File::create(path("more"))?.set_len(MIB as u64)?;
    let disk = DiskConfig {
        path: Some(path("more")),
        image_type: Some(ImageType::Raw),
        ..DiskConfig::new()
    };
    let added = client
        .vm_add_disk_put(disk.clone())
        .await
        .context("add-disk")?;
    ensure!(added.bdf.starts_with("0000:00:"), "{added:?}");
    let twice = DiskConfig {
        id: Some(added.id.clone()),
        ..disk
    };
    expect(client.vm_add_disk_put(twice).await, "add-disk twice", 409)?;
    let tap = NetConfig {
        tap: Some("client0".into()),
        ..NetConfig::new()
    };
    let net = client.vm_add_net_put(tap).await.context("add-net")?;
    let another = VsockConfig::new(4, path("vsock2"));
    expect(client.vm_add_vsock_put(another).await, "add-vsock", 409)?;
    for id in [added.id, net.id] {
        let gone = VmRemoveDevice { id: Some(id) };
        client.vm_remove_device_put(gone).await.context("remove")?;
    }

    let balloon = VmResize {
        desired_balloon: Some(MIB),
        ..VmResize::new()
    };
    client.vm_resize_put(balloon).await.context("vm.resize")?;
    let vcpus = VmResize {
        desired_vcpus: Some(2),
        ..VmResize::new()
    };
    expect(client.vm_resize_put(vcpus).await, "vm.resize", 400)?;
    let grow = VmResizeDisk {
        id: Some("data".into()),
        desired_size: Some(8 * MIB),
    };
    client
        .vm_resize_disk_put(grow)
        .await
        .context("resize-disk")?;
    let zone = VmResizeZone {
        id: Some("zone".into()),
        desired_ram: Some(MIB),
    };
    expect(client.vm_resize_zone_put(zone).await, "resize-zone", 400)?;

    client.reboot_vm().await.context("vm.reboot")?;
    state_is(client, VmState::Running).await?;
    client.shutdown_vm().await.context("vm.shutdown")?;
    state_is(client, VmState::Created).await?;
    client.boot_vm().await.context("The second vm.boot")?;
    client.delete_vm().await.context("vm.delete")?;
    expect(client.vm_info_get().await, "vm.info", 404)
}

async fn state_is(client: &SocketBasedApiClient, state: VmState) -> Result<()> {
    let start = Instant::now();
    loop {
        let info = client.vm_info_get().await.context("vm.info")?;
        if info.state == state {
            return Ok(());
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "{:?}, not {state:?}",
            info.state
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the VMM does not have, it says so.
async fn refused(client: &SocketBasedApiClient) -> Result<()> {
    let snapshot = VmSnapshotConfig {
        destination_url: Some("file:///nowhere".into()),
    };
    expect(client.vm_snapshot_put(snapshot).await, "vm.snapshot", 404)?;
    let coredump = VmCoredumpData {
        destination_url: Some("file:///nowhere".into()),
    };
    expect(client.vm_coredump_put(coredump).await, "vm.coredump", 404)
}
