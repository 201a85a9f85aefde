//! The same configuration by flag and by JSON.

use std::fmt::Debug;
use std::str::FromStr;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::config::*;

/// The flag and the JSON mean the same, and what is written reads back.
fn same<T>(flag: &str, value: Value)
where
    T: FromStr<Err = OptionError> + DeserializeOwned + Serialize + PartialEq + Debug,
{
    let by_flag: T = flag.parse().unwrap();
    let by_json: T = serde_json::from_value(value).unwrap();
    assert_eq!(by_flag, by_json, "{flag}");
    let written = serde_json::to_value(&by_flag).unwrap();
    assert_eq!(
        serde_json::from_value::<T>(written).unwrap(),
        by_flag,
        "{flag}"
    );
}

fn message<T: FromStr<Err = OptionError> + Debug>(flag: &str) -> String {
    flag.parse::<T>().unwrap_err().to_string()
}

#[test]
fn cpus() {
    same::<CpusConfig>("boot=2", json!({"boot_vcpus": 2, "max_vcpus": 2}));
    same::<CpusConfig>(
        "boot=2,max=8,topology=2:2:1:2,kvm_hyperv=on,max_phys_bits=40,\
         affinity=[0@[0,2-3],1@[1]],features=amx,nested=off,core_scheduling=vcpu,profile=host",
        json!({
            "boot_vcpus": 2, "max_vcpus": 8,
            "topology": {"threads_per_core": 2, "cores_per_die": 2,
                         "dies_per_package": 1, "packages": 2},
            "kvm_hyperv": true, "max_phys_bits": 40,
            "affinity": [{"vcpu": 0, "host_cpus": [0, 2, 3]}, {"vcpu": 1, "host_cpus": [1]}],
            "features": {"amx": true}, "nested": false,
            "core_scheduling": "Vcpu", "profile": "Host",
        }),
    );
    assert_eq!(
        message::<CpusConfig>("boot=two"),
        "invalid value \"two\" for \"boot\": expected a number of at most 32 bits"
    );
    for flag in [
        "topology=1:1:1",
        "topology=1:1:1:x",
        "features=avx",
        "max=-1",
    ] {
        message::<CpusConfig>(flag);
    }
}

#[test]
fn memory() {
    same::<MemoryConfig>("size=1G", json!({"size": 1u64 << 30}));
    same::<MemoryConfig>(
        "size=512M,mergeable=on,shared=true,hugepages=on,hugepage_size=2M,\
         hotplug_method=virtio-mem,hotplug_size=1G,hotplugged_size=0,prefault=on,reserve=on,thp=off",
        json!({
            "size": 512 << 20, "mergeable": true, "shared": true, "hugepages": true,
            "hugepage_size": 2 << 20, "hotplug_method": "VirtioMem", "hotplug_size": 1 << 30,
            "hotplugged_size": 0, "prefault": true, "reserve": true, "thp": false,
        }),
    );
    same::<MemoryZoneConfig>(
        "id=a,size=1G,file=/dev/shm,host_numa_node=1",
        json!({"id": "a", "size": 1 << 30, "file": "/dev/shm", "host_numa_node": 1}),
    );
    assert_eq!(
        message::<MemoryZoneConfig>("size=1G"),
        "option \"id\" is missing"
    );
    assert!(message::<MemoryConfig>("size=lots").contains("K, M or G"));
}

#[test]
fn disks() {
    same::<DiskConfig>("path=/a", json!({"path": "/a"}));
    same::<DiskConfig>(
        "path=\"/a,b\",readonly=on,direct=on,iommu=on,num_queues=2,queue_size=256,vhost_user=on,\
         socket=/s,bw_size=1M,bw_one_time_burst=2M,bw_refill_time=100,ops_size=10,\
         ops_refill_time=1000,id=root,pci_segment=1,pci_device_id=5,rate_limit_group=g,\
         queue_affinity=[0@[1]],serial=x,backing_files=on,sparse=off,image_type=qcow2,\
         lock_granularity=full",
        json!({
            "path": "/a,b", "readonly": true, "direct": true, "iommu": true, "num_queues": 2,
            "queue_size": 256, "vhost_user": true, "vhost_socket": "/s",
            "rate_limiter_config": {
                "bandwidth": {"size": 1 << 20, "one_time_burst": 2 << 20, "refill_time": 100},
                "ops": {"size": 10, "refill_time": 1000},
            },
            "id": "root", "pci_segment": 1, "pci_device_id": 5, "rate_limit_group": "g",
            "queue_affinity": [{"queue_index": 0, "host_cpus": [1]}], "serial": "x",
            "backing_files": true, "sparse": false, "image_type": "Qcow2",
            "lock_granularity": "Full",
        }),
    );
    assert!(message::<DiskConfig>("path=/a,bw_size=1").contains("bw_refill_time"));
    assert!(message::<DiskConfig>("image_type=iso").contains("qcow2"));
    same::<RateLimiterGroupConfig>(
        "id=g,ops_size=10,ops_refill_time=1000",
        json!({"id": "g", "rate_limiter_config": {"ops": {"size": 10, "refill_time": 1000}}}),
    );
}

#[test]
fn what_cloud_hypervisor_takes_at_its_default_asks_for_nothing() {
    same::<DiskConfig>(
        "path=/a,_disable_io_uring=off,disable_aio=false,_disable_aio=",
        json!({"path": "/a"}),
    );
    same::<SerialConfig>("null,iommu=off", json!({"mode": "Null"}));
    same::<MemoryConfig>("size=1G,balloon=off,file=", json!({"size": 1 << 30}));
    same::<PmemConfig>("file=/f,mergeable=off", json!({"file": "/f"}));
    same::<FsConfig>(
        "tag=t,socket=/s,dax=on,cache_size=8G",
        json!({"tag": "t", "socket": "/s"}),
    );
    same::<PlatformConfig>(
        "serial_number=1,uuid=2",
        json!({"system_serial_number": "1", "system_uuid": "2"}),
    );
    assert_eq!(
        message::<DiskConfig>("path=/a,disable_aio=on"),
        "option \"disable_aio\" is not supported: the only valid value is false"
    );
    assert_eq!(
        message::<PlatformConfig>("uuid=1,system_uuid=1"),
        "option \"system_uuid\" is given twice"
    );
    assert!(message::<DiskConfig>("path=/a,disable=off").starts_with("unknown option"));
    assert!(message::<NetConfig>("disable_aio=off").starts_with("unknown option"));
}

#[test]
fn nets() {
    same::<NetConfig>("tap=tap0", json!({"tap": "tap0"}));
    same::<NetConfig>("fd=7,mac=", json!({"fds": [7]}));
    same::<NetConfig>(
        "tap=,ip=10.0.0.1,mask=255.255.255.0,mac=12:34:56:78:90:ab,host_mac=12:34:56:78:90:ac,\
         mtu=9000,fd=[3,4],num_queues=4,queue_size=512,vhost_user=on,socket=/s,\
         vhost_mode=server,offload_tso=off,offload_ufo=off,offload_csum=off,id=n",
        json!({
            "ip": "10.0.0.1", "mask": "255.255.255.0", "mac": "12:34:56:78:90:ab",
            "host_mac": "12:34:56:78:90:ac", "mtu": 9000, "fds": [3, 4], "num_queues": 4,
            "queue_size": 512, "vhost_user": true, "vhost_socket": "/s", "vhost_mode": "Server",
            "offload_tso": false, "offload_ufo": false, "offload_csum": false, "id": "n",
        }),
    );
    assert!(message::<NetConfig>("mac=1:2").contains("12:34:56:78:9a:bc"));
}

#[test]
fn restoring() {
    same::<RestoreConfig>("source_url=file:///s", json!({"source_url": "file:///s"}));
    same::<RestoreConfig>(
        "source_url=file:///s,prefault=on,memory_restore_mode=ondemand,net_fds=[a@[3,4],b@[5]],\
         resume=true",
        json!({
            "source_url": "file:///s", "prefault": true, "memory_restore_mode": "OnDemand",
            "net_fds": [
                {"id": "a", "num_fds": 2, "fds": [3, 4]}, {"id": "b", "num_fds": 1, "fds": [5]},
            ],
            "resume": true,
        }),
    );
    assert!(message::<RestoreConfig>("resume=true").contains("source_url"));
    assert!(message::<RestoreConfig>("source_url=/s,net_fds=[3]").contains("a@[1,2]"));
}

#[test]
fn consoles() {
    same::<SerialConfig>("tty", json!({"mode": "Tty"}));
    same::<SerialConfig>("file=/tmp/log", json!({"mode": "File", "file": "/tmp/log"}));
    same::<SerialConfig>("socket=/s", json!({"mode": "Socket", "socket": "/s"}));
    same::<ConsoleConfig>("off", json!({"mode": "Off"}));
    same::<ConsoleConfig>(
        "pty,iommu=on,id=c",
        json!({"mode": "Pty", "iommu": true, "id": "c"}),
    );
    same::<DebugConsoleConfig>(
        "file=/tmp/log,iobase=0x402",
        json!({"mode": "File", "file": "/tmp/log", "iobase": 0x402}),
    );
    assert_eq!(
        "null".parse::<SerialConfig>().unwrap(),
        SerialConfig::default()
    );
    for flag in ["tty,off", "tty,file=/a", "file=/a,socket=/b"] {
        assert!(message::<SerialConfig>(flag).contains("only one of"));
    }
    assert!(message::<SerialConfig>("printer").contains("off, null, pty, tty"));
}

#[test]
fn other_devices() {
    same::<RngConfig>(
        "src=/dev/hwrng,iommu=on",
        json!({"src": "/dev/hwrng", "iommu": true}),
    );
    same::<RtcConfig>("id=r", json!({"id": "r"}));
    same::<VsockConfig>("cid=3,socket=/s", json!({"cid": 3, "socket": "/s"}));
    same::<PmemConfig>(
        "file=/p,size=1G,discard_writes=on",
        json!({"file": "/p", "size": 1 << 30, "discard_writes": true}),
    );
    same::<FsConfig>(
        "tag=t,socket=/s,num_queues=2",
        json!({"tag": "t", "socket": "/s", "num_queues": 2}),
    );
    same::<BalloonConfig>(
        "size=1G,deflate_on_oom=on,free_page_reporting=on",
        json!({"size": 1 << 30, "deflate_on_oom": true, "free_page_reporting": true}),
    );
    same::<GenericVhostUserConfig>(
        "device_type=26,socket=/s,queue_sizes=[128,256]",
        json!({"device_type": 26, "socket": "/s", "queue_sizes": [128, 256]}),
    );
    same::<VdpaConfig>("path=/dev/v", json!({"path": "/dev/v"}));
    same::<DeviceConfig>(
        "path=/sys/d,x_exclude_mmap_bars=[0,2]",
        json!({"path": "/sys/d", "x_exclude_mmap_bars": [0, 2]}),
    );
    same::<DeviceConfig>("fd=7", json!({"fd": 7}));
    same::<UserDeviceConfig>("socket=/s", json!({"socket": "/s"}));
    same::<TpmConfig>("socket=/s", json!({"socket": "/s"}));
    assert!(message::<VsockConfig>("socket=/s").contains("\"cid\" is missing"));
    assert!(message::<DeviceConfig>("").contains("exactly one"));
}

#[test]
fn the_machine_as_a_whole() {
    same::<NumaConfig>(
        "guest_numa_id=1,cpus=[0-1],distances=[0@20],memory_zones=[a,b],pci_segments=[1],device_id=d",
        json!({
            "guest_numa_id": 1, "cpus": [0, 1],
            "distances": [{"destination": 0, "distance": 20}],
            "memory_zones": ["a", "b"], "pci_segments": [1], "device_id": "d",
        }),
    );
    same::<PciSegmentConfig>(
        "pci_segment=1,mmio32_aperture_weight=2",
        json!({"pci_segment": 1, "mmio32_aperture_weight": 2}),
    );
    same::<PlatformConfig>(
        "num_pci_segments=2,iommu_segments=[1],iommu_address_width=48,iommufd=on,iommufd_fd=5,\
         vfio_p2p_dma=off,system_serial_number=s,system_uuid=u,system_manufacturer=m,\
         system_product_name=p,system_version=v,system_family=f,system_sku_number=k,\
         chassis_asset_tag=c,oem_strings=[a,\"b,c\"],tdx=on,sev_snp=on",
        json!({
            "num_pci_segments": 2, "iommu_segments": [1], "iommu_address_width_bits": 48,
            "iommufd": true, "iommufd_fd": 5, "vfio_p2p_dma": false,
            "system_serial_number": "s", "system_uuid": "u", "system_manufacturer": "m",
            "system_product_name": "p", "system_version": "v", "system_family": "f",
            "system_sku_number": "k", "chassis_asset_tag": "c", "oem_strings": ["a", "b,c"],
            "tdx": true, "sev_snp": true,
        }),
    );
    same::<LandlockConfig>("path=/a,access=[r]", json!({"path": "/a", "access": "r"}));
    same::<LandlockConfig>("path=/a,access=rw", json!({"path": "/a", "access": "rw"}));
    assert!(message::<LandlockConfig>("path=/a,access=x").contains("r, w or rw"));
}

#[test]
fn an_empty_flag_is_the_default() {
    assert_eq!("".parse::<CpusConfig>().unwrap(), CpusConfig::default());
    assert_eq!("".parse::<MemoryConfig>().unwrap(), MemoryConfig::default());
    assert_eq!("".parse::<DiskConfig>().unwrap(), DiskConfig::default());
    assert_eq!("".parse::<NetConfig>().unwrap(), NetConfig::default());
    assert_eq!("".parse::<RngConfig>().unwrap(), RngConfig::default());
    assert_eq!(
        "".parse::<PlatformConfig>().unwrap(),
        PlatformConfig::default()
    );
    assert_eq!(
        "".parse::<DebugConsoleConfig>().unwrap(),
        DebugConsoleConfig::default()
    );
}

#[test]
fn sockets_are_a_path_or_a_descriptor() {
    for (text, expected) in [
        ("/run/a.sock", ApiSocketArg::Path("/run/a.sock".into())),
        ("path=/run/a.sock", ApiSocketArg::Path("/run/a.sock".into())),
        ("fd=3", ApiSocketArg::Fd(3)),
    ] {
        assert_eq!(text.parse::<ApiSocketArg>().unwrap(), expected);
    }
    for text in ["", "path=", "fd=x", "path=/a,fd=3"] {
        message::<ApiSocketArg>(text);
    }
    assert_eq!(
        "path=/e".parse::<EventMonitorArg>().unwrap(),
        EventMonitorArg::Path("/e".into())
    );
    message::<EventMonitorArg>("/e");
}

fn parse_everything(text: &str) {
    let _ = text.parse::<CpusConfig>();
    let _ = text.parse::<MemoryConfig>();
    let _ = text.parse::<MemoryZoneConfig>();
    let _ = text.parse::<DiskConfig>();
    let _ = text.parse::<NetConfig>();
    let _ = text.parse::<SerialConfig>();
    let _ = text.parse::<ConsoleConfig>();
    let _ = text.parse::<DebugConsoleConfig>();
    let _ = text.parse::<NumaConfig>();
    let _ = text.parse::<PlatformConfig>();
    let _ = text.parse::<RateLimiterGroupConfig>();
    let _ = text.parse::<ApiSocketArg>();
}

proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC*") {
        parse_everything(&text);
    }

    #[test]
    fn no_near_miss_makes_a_parser_panic(
        text in "((boot|size|affinity|path|topology|cpus|distances|file|id|mac)(=|@|)[\\[\\]\"0-9a-zG:@,é-]{0,12},?){0,5}"
    ) {
        parse_everything(&text);
    }

    #[test]
    fn every_size_survives_its_own_notation(kibibytes in 0u64..1 << 40) {
        prop_assert_eq!(parse_size(&format!("{kibibytes}K")), Some(kibibytes << 10));
        prop_assert_eq!(parse_size(&(kibibytes << 10).to_string()), Some(kibibytes << 10));
    }
}
