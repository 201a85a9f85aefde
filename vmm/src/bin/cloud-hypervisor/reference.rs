//! Every flag of Cloud Hypervisor's command line, with every key, is accepted
//! or refused by name; and the same machine comes out of flags and of JSON.

use std::collections::BTreeSet;

use api_client::UNSUPPORTED;
use api_client::config::{VmConfig, unknown_field};
use clap::{CommandFactory, Parser};
use serde_json::{Value, json};
use vmm::config::VmParams;

use crate::args::Args;

/// What becomes of a flag.
enum Outcome {
    /// The machine has it.
    Accepted,
    /// The message says this.
    Refused(&'static str),
    /// One or the other, as the host or the rest of the machine has it.
    Known,
}
use Outcome::{Accepted, Known, Refused};

fn config(line: &[&str]) -> Result<VmConfig, String> {
    // What to boot, where the line does not say it.
    let kernel: &[&str] = match line.contains(&"--firmware") {
        true => &[],
        false => &["--kernel", "/k"],
    };
    let line = ["cloud-hypervisor"]
        .iter()
        .chain(kernel)
        .chain(line)
        .copied();
    let args = Args::try_parse_from(line).map_err(|error| error.to_string())?;
    let config = args.config().map_err(|error| format!("{error:#}"))?;
    config.ok_or_else(|| "no machine".into())
}

fn outcome(line: &[&str]) -> Result<(), String> {
    let config = config(line)?;
    let with_source = |error: vmm::config::ConfigError| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error} {}", source.unwrap_or_default())
    };
    VmParams::try_from(&config).map(drop).map_err(with_source)
}

const FLAGS: &[(&[&str], Outcome)] = &[
    (&["--api-socket", "path=/s"], Accepted),
    (&["--api-socket", "/s"], Accepted),
    (&["--api-socket", "fd=3"], Accepted),
    (&["--event-monitor", "path=/e"], Accepted),
    (&["--event-monitor", "fd=3"], Accepted),
    (&["--initramfs", "/i"], Accepted),
    (&["--cmdline", "console=ttyS0"], Accepted),
    (&["--firmware", "/f"], Accepted),
    (
        &["--firmware", "/f", "--kernel", "/k"],
        Refused("exclude each other"),
    ),
    (&["--cpus", "boot=2,max=4"], Accepted),
    (&["--cpus", "boot=2,max_phys_bits=40,nested=off"], Accepted),
    (&["--cpus", "boot=4,topology=2:2:1:1"], Accepted),
    (&["--cpus", "boot=1,kvm_hyperv=on"], Refused("Hyper-V")),
    (&["--cpus", "boot=1,features=amx"], Refused("AMX")),
    (&["--cpus", "boot=1,affinity=[0@[0]]"], Known),
    (&["--cpus", "boot=1,core_scheduling=vcpu"], Known),
    (
        &["--cpus", "boot=1,core_scheduling=off,profile=host"],
        Accepted,
    ),
    (&["--cpus", "boot=0"], Refused("cpus.boot_vcpus")),
    (&["--cpus", "cores=2"], Refused("cores")),
    (
        &[
            "--memory",
            "size=1G,mergeable=on,prefault=on,reserve=on,thp=off",
        ],
        Accepted,
    ),
    (
        &[
            "--memory",
            "size=1G,shared=on,hugepages=on,hugepage_size=2M",
        ],
        Accepted,
    ),
    (&["--memory", "size=1G,hotplug_size=1G"], Refused("memory")),
    (&["--memory", "size=1G,hotplug_method=virtio-mem"], Accepted),
    (&["--memory", "bytes=1G"], Refused("bytes")),
    (
        &["--memory", "size=0", "--memory-zone", "id=a,size=1G"],
        Known,
    ),
    (
        &[
            "--disk",
            "path=/d,readonly=on,direct=on,num_queues=1,queue_size=256,id=d,serial=s,\
             image_type=raw,lock_granularity=full,sparse=off,backing_files=on,pci_segment=0,\
             pci_device_id=7,bw_size=1,bw_one_time_burst=1,bw_refill_time=1,ops_size=1,\
             ops_one_time_burst=1,ops_refill_time=1,iommu=off,queue_affinity=[0@[0]]",
            "path=/e,image_type=qcow2,lock_granularity=byte-range",
        ],
        Accepted,
    ),
    (
        &[
            "--disk",
            "path=/d,rate_limit_group=g",
            "--rate-limit-group",
            "id=g,bw_size=1,bw_refill_time=1",
        ],
        Accepted,
    ),
    (
        &["--disk", "path=/d,_disable_io_uring=off,_disable_aio=off"],
        Accepted,
    ),
    (
        &["--disk", "path=/d,disable_io_uring=on"],
        Refused("disable_io_uring"),
    ),
    (&["--disk", "path=/d,image_type=vhd"], Refused("image type")),
    (
        &["--disk", "path=/d,image_type=vhdx"],
        Refused("image type"),
    ),
    (
        &["--disk", "path=/d,image_type=vmdk"],
        Refused("image type"),
    ),
    (
        &["--disk", "vhost_user=on,socket=/s"],
        Refused("vhost-user"),
    ),
    (&["--disk", "path=/d,iommu=on"], Refused("iommu")),
    (&["--disk", "path=/d,pci_segment=1"], Refused("segment")),
    (&["--disk", "readonly=on"], Refused("path")),
    (&["--disk", "path=/d,num_queues=2"], Refused("queues")),
    (
        &[
            "--net",
            "tap=t,ip=10.0.0.1,mask=255.0.0.0,mac=02:00:00:00:00:01,host_mac=02:00:00:00:00:02,\
             mtu=1500,num_queues=2,queue_size=256,id=n,offload_tso=off,offload_ufo=off,\
             offload_csum=off,bw_size=1,bw_refill_time=1,pci_device_id=9",
        ],
        Accepted,
    ),
    (&["--net", "fd=[3]"], Accepted),
    (
        &["--net", "vhost_user=on,socket=/s,vhost_mode=server"],
        Refused("vhost-user"),
    ),
    (&["--net", "tap=t,num_queues=1"], Refused("network device")),
    (&["--serial", "off"], Accepted),
    (&["--serial", "null"], Accepted),
    (&["--serial", "tty", "--console", "off"], Accepted),
    (&["--serial", "tty"], Accepted),
    (&["--serial", "null,iommu=off"], Accepted),
    (&["--serial", "null,iommu=on"], Refused("iommu")),
    (&["--serial", "file=/f"], Accepted),
    (&["--serial", "pty"], Accepted),
    (&["--serial", "socket=/s"], Accepted),
    (&["--console", "pty"], Accepted),
    (&["--console", "socket=/s"], Accepted),
    (&["--console", "file=/f,id=c,pci_device_id=5"], Accepted),
    (&["--console", "null,iommu=on"], Refused("iommu")),
    (&["--debug-console", "off,iobase=0xe9"], Accepted),
    (&["--debug-console", "file=/f,iobase=0x402"], Accepted),
    (&["--debug-console", "pty"], Accepted),
    (&["--debug-console", "tty"], Accepted),
    (&["--debug-console", "null"], Accepted),
    (&["--debug-console", "socket=/s"], Refused("socket")),
    (&["--rng", "src=/dev/urandom,id=r"], Accepted),
    (&["--rtc"], Refused("clock")),
    (&["--vsock", "cid=3,socket=/s,id=v"], Accepted),
    (
        &["--vsock", "cid=2,socket=/s"],
        Refused("context identifier"),
    ),
    (
        &[
            "--balloon",
            "size=16M,deflate_on_oom=on,free_page_reporting=on,id=b",
        ],
        Accepted,
    ),
    (&["--balloon", "size=512M"], Refused("does not fit")),
    (&["--watchdog"], Accepted),
    (&["--pvpanic"], Accepted),
    (&["--no-shutdown"], Accepted),
    (
        &["--fs", "tag=t,socket=/s,num_queues=1,queue_size=64"],
        Refused("file system"),
    ),
    (
        &["--pmem", "file=/f,size=1M,discard_writes=on"],
        Refused("ersistent memory"),
    ),
    (
        &[
            "--generic-vhost-user",
            "device_type=1,socket=/s,queue_sizes=[64]",
        ],
        Refused("vhost-user"),
    ),
    (&["--vdpa", "path=/v,num_queues=1"], Refused("vDPA")),
    (&["--device", "path=/sys/x"], Refused("host device")),
    (&["--user-device", "socket=/s"], Refused("vfio-user")),
    (&["--numa", "guest_numa_id=0,cpus=[0]"], Refused("NUMA")),
    (&["--tpm", "socket=/s"], Refused("TPM")),
    (
        &["--pci-segment", "pci_segment=0,mmio32_aperture_weight=1"],
        Refused("PCI segment"),
    ),
    (&["--platform", "num_pci_segments=1"], Accepted),
    (
        &["--platform", "num_pci_segments=2"],
        Refused("PCI segment"),
    ),
    (
        &[
            "--platform",
            "serial_number=1,uuid=00000000-0000-0000-0000-000000000001",
        ],
        Accepted,
    ),
    (&["--platform", "iommufd=on"], Refused("iommufd")),
    (&["--platform", ""], Accepted),
    (&["--platform", "tdx=on"], Refused("confidential")),
    (&["--platform", "sev_snp=on"], Refused("confidential")),
    (
        &[
            "--platform",
            "system_serial_number=1,system_uuid=00000000-0000-0000-0000-000000000001",
        ],
        Known,
    ),
    (
        &["--restore", "source_url=file:///s"],
        Refused("takes the whole machine from the snapshot"),
    ),
    (&["--seccomp", "true"], Accepted),
    (&["--seccomp", "false"], Accepted),
    (&["--seccomp", "log"], Accepted),
    (&["--seccomp", "errno"], Accepted),
    (&["--seccomp", "maybe"], Refused("--seccomp")),
    (
        &[
            "--landlock",
            "--landlock-rules",
            "path=/a,access=rw",
            "path=/b,access=r",
        ],
        Accepted,
    ),
    (
        &["--landlock-rules", "path=/a,access=x"],
        Refused("r, w or rw"),
    ),
    (&["--log-file", "/l", "-vvv"], Accepted),
    (&["--log-format", "{levelchar}{localglog} {msg}"], Accepted),
    (&["--gdb", "path=/g"], Refused("--gdb")),
    (
        &["--dbus-service-name", "x"],
        Refused("--dbus-service-name"),
    ),
    // Not Cloud Hypervisor's.
    (&["--exit-stats", "guest_leaves=off,latency=on"], Accepted),
    (
        &[
            "--exit-stats",
            "socket=/run/stats.sock,mode=0660,group=monitor",
        ],
        Accepted,
    ),
    (&["--exit-stats", "leaves=off"], Refused("leaves")),
    (&["--exit-stats", "mode=0660"], Refused("socket")),
];

#[test]
fn every_flag_is_accepted_or_refused_by_name() {
    for (line, expected) in FLAGS {
        match (outcome(line), expected) {
            (Ok(()), Accepted | Known) => {}
            (Err(message), Known) => {
                assert!(message.contains("not supported"), "{line:?}: {message}")
            }
            (Err(message), Refused(what)) => {
                assert!(message.contains(what), "{line:?}: {message}");
            }
            (Err(message), Accepted) => panic!("{line:?} is refused: {message}"),
            (Ok(()), Refused(_)) => panic!("{line:?} is accepted"),
        }
    }
}

#[test]
fn the_same_machine_comes_out_of_flags_and_of_json() {
    let cases: &[(&[&str], Value)] = &[
        (&[], json!({})),
        (
            &["--cpus", "boot=2,max=4", "--memory", "size=1G,shared=on"],
            json!({
                "cpus": {"boot_vcpus": 2, "max_vcpus": 4},
                "memory": {"size": 1 << 30, "shared": true},
            }),
        ),
        (
            &[
                "--disk",
                "path=/a,readonly=on",
                "path=/b",
                "--disk",
                "path=/c,id=c",
            ],
            json!({"disks": [{"path": "/a", "readonly": true}, {"path": "/b"}, {"path": "/c", "id": "c"}]}),
        ),
        (
            &[
                "--net",
                "tap=t,mac=02:00:00:00:00:01,num_queues=4",
                "--cpus",
                "boot=2",
            ],
            json!({
                "net": [{"tap": "t", "mac": "02:00:00:00:00:01", "num_queues": 4}],
                "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
            }),
        ),
        (
            &[
                "--serial",
                "file=/s",
                "--console",
                "off",
                "--rng",
                "src=/dev/random",
            ],
            json!({
                "serial": {"mode": "File", "file": "/s"},
                "console": {"mode": "Off"},
                "rng": {"src": "/dev/random"},
            }),
        ),
        (
            &[
                "--vsock",
                "cid=3,socket=/v",
                "--balloon",
                "size=1M",
                "--watchdog",
                "--pvpanic",
            ],
            json!({
                "vsock": {"cid": 3, "socket": "/v"},
                "balloon": {"size": 1 << 20},
                "watchdog": true,
                "pvpanic": true,
            }),
        ),
        (
            &["--landlock", "--landlock-rules", "path=/a,access=rw"],
            json!({"landlock_enable": true, "landlock_rules": [{"path": "/a", "access": "rw"}]}),
        ),
        (
            &["--exit-stats", "guest_leaves=off"],
            json!({"exit_stats": {"guest_leaves": false}}),
        ),
        (
            &["--initramfs", "/i", "--cmdline", "quiet"],
            json!({"payload": {"kernel": "/k", "initramfs": "/i", "cmdline": "quiet"}}),
        ),
    ];
    for (line, body) in cases {
        let mut body = body.clone();
        if body.get("payload").is_none() {
            body["payload"] = json!({"kernel": "/k"});
        }
        assert_eq!(unknown_field("VmConfig", &body), None);
        let by_json: VmConfig = serde_json::from_value(body).unwrap();
        let by_flags = config(line).unwrap();
        assert_eq!(by_flags, by_json, "{line:?}");
        assert_eq!(
            VmParams::try_from(&by_flags),
            VmParams::try_from(&by_json),
            "{line:?}"
        );
    }
}

/// The page for those who come from Cloud Hypervisor.
const PAGE: &str = include_str!("../../../../docs/compatibility.md");

/// What stands in the first column of a table's rows, from one heading or
/// sentence of the page to the next.
fn named_between<'a>(from: &str, to: &str) -> BTreeSet<&'a str> {
    let (_, rest) = PAGE.split_once(from).unwrap();
    let (part, _) = rest.split_once(to).unwrap();
    let rows = part.lines().filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn the_page_on_compatibility_lists_every_flag_where_it_belongs() {
    let flags =
        |line: &&'static [&'static str]| line.iter().copied().filter(|word| word.starts_with("--"));
    let (refused, taken): (Vec<_>, Vec<_>) = FLAGS
        .iter()
        .partition(|(_, outcome)| matches!(outcome, Refused(_)));
    let mut taken: BTreeSet<&str> = taken.iter().flat_map(|(line, _)| flags(line)).collect();
    // Every line of the table has the first, which the second excludes.
    taken.extend(["--kernel", "--restore"]);
    let refused: BTreeSet<&str> = refused
        .iter()
        .flat_map(|(line, _)| flags(line))
        .filter(|flag| !taken.contains(flag))
        .collect();
    for arg in Args::command().get_arguments() {
        let Some(name) = arg.get_long() else { continue };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let is_refused = refused.contains(&*format!("--{name}"));
        assert_eq!(
            help.contains("not supported"),
            is_refused,
            "--{name}: {help}"
        );
    }
    assert_eq!(named_between("## Flags", "Refused whatever"), taken);
    assert_eq!(named_between("Refused whatever", "## Requests"), refused);
    assert_eq!(
        named_between("## Requests", "## Differences"),
        UNSUPPORTED.into()
    );
}
