//! The arguments, in Cloud Hypervisor's words, and their way into a
//! configuration.

use std::error::Error;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};
use api_client::config::{PayloadConfig, RestoreConfig, VmConfig};
use api_client::options::{ApiSocketArg, EventMonitorArg, ExitStatsArg, StatsSocketArg};
use clap::{ArgAction, Parser};
use vmm::sandbox::OnViolation;

/// Launch a virtual machine.
#[derive(Debug, Default, Parser)]
#[command(name = "cloud-hypervisor", disable_version_flag = true)]
pub struct Args {
    /// API socket: path=<path>, fd=<number> or a path
    #[arg(long, value_name = "SOCKET")]
    api_socket: Option<String>,
    /// Memory balloon: size=<size>,deflate_on_oom=on|off,free_page_reporting=on|off
    #[arg(long)]
    balloon: Option<String>,
    /// Kernel command line
    #[arg(long)]
    cmdline: Option<String>,
    /// Virtio console: off|null|pty|tty|file=<path>|socket=<path>
    #[arg(long)]
    console: Option<String>,
    /// Virtual CPUs: boot=<n>,max=<n>,topology=<t>:<c>:<d>:<p>,max_phys_bits=<n>,nested=on|off
    #[arg(long)]
    cpus: Option<String>,
    /// Debug port: off|null|pty|tty|file=<path>,iobase=<port>
    #[arg(long)]
    debug_console: Option<String>,
    /// Host devices: not supported
    #[arg(long, num_args = 1..)]
    device: Vec<String>,
    /// Disks: path=<path>,readonly=on|off,...
    #[arg(long, num_args = 1..)]
    disk: Vec<String>,
    /// Write events to: path=<path>|fd=<number>
    #[arg(long)]
    event_monitor: Option<String>,
    /// Exit accounting of this VM: guest_leaves=on|off,latency=on|off; and a read-only
    /// socket for statistics: socket=<path>,mode=<octal>,group=<group>
    #[arg(long)]
    exit_stats: Option<String>,
    /// Firmware to boot: an ELF image with a PVH entry point
    #[arg(long, value_name = "PATH")]
    firmware: Option<PathBuf>,
    /// Shared file systems: not supported
    #[arg(long, num_args = 1..)]
    fs: Vec<String>,
    /// Virtio devices of other processes: not supported
    #[arg(long, num_args = 1..)]
    generic_vhost_user: Vec<String>,
    /// Initial file system
    #[arg(long, value_name = "PATH")]
    initramfs: Option<PathBuf>,
    /// Kernel: a bzImage, or an ELF image with a PVH entry point
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Confine the VMM with Landlock
    #[arg(long)]
    landlock: bool,
    /// Paths that stay reachable: path=<path>,access=[rw]
    #[arg(long, num_args = 1..)]
    landlock_rules: Vec<String>,
    /// Log file, instead of standard error
    #[arg(long, value_name = "PATH")]
    pub log_file: Option<PathBuf>,
    /// Form of a line of the log: text with {boottime}, {thread}, {level}, {location}, {msg}, ...
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Memory: size=<size>,shared=on|off,hugepages=on|off,hugepage_size=<size>,
    /// mergeable=on|off,prefault=on|off,reserve=on|off,thp=on|off
    #[arg(long)]
    memory: Option<String>,
    /// Memory zones: id=<id>,size=<size>,...
    #[arg(long, num_args = 1..)]
    memory_zone: Vec<String>,
    /// Network devices: tap=<name>,mac=<address>,...
    #[arg(long, num_args = 1..)]
    net: Vec<String>,
    /// Do not end the process when the guest switches itself off
    #[arg(long)]
    pub no_shutdown: bool,
    /// NUMA nodes: not supported
    #[arg(long, num_args = 1..)]
    numa: Vec<String>,
    /// PCI segments: not supported
    #[arg(long, num_args = 1..)]
    pci_segment: Vec<String>,
    /// The machine as a whole: system_serial_number=<text>,system_uuid=<uuid>,...
    #[arg(long)]
    platform: Option<String>,
    /// Persistent memory: not supported
    #[arg(long, num_args = 1..)]
    pmem: Vec<String>,
    /// Device by which the guest tells of a panic of its kernel
    #[arg(long)]
    pvpanic: bool,
    /// Groups of rate limits: id=<id>,bw_size=<n>,...
    #[arg(long, num_args = 1..)]
    rate_limit_group: Vec<String>,
    /// Restore from a snapshot: source_url=file://<directory>,prefault=on|off,
    /// memory_restore_mode=copy|ondemand,net_fds=[<id>@[<fd>,..]],resume=true|false
    #[arg(long)]
    restore: Option<String>,
    /// Entropy: src=<path>
    #[arg(long)]
    rng: Option<String>,
    /// Real-time clock device: not supported
    #[arg(long, num_args = 0..=1, default_missing_value = "")]
    rtc: Option<String>,
    /// Filter system calls: true|false|log|errno
    #[arg(long, default_value = "true")]
    seccomp: String,
    /// Serial port: off|null|pty|tty|file=<path>|socket=<path>
    #[arg(long)]
    serial: Option<String>,
    /// TPM: not supported
    #[arg(long)]
    tpm: Option<String>,
    /// vfio-user devices: not supported
    #[arg(long, num_args = 1..)]
    user_device: Vec<String>,
    /// More messages; can be repeated
    #[arg(short, action = ArgAction::Count)]
    pub verbosity: u8,
    /// vDPA devices: not supported
    #[arg(long, num_args = 1..)]
    vdpa: Vec<String>,
    /// Print the version
    #[arg(short = 'V', long)]
    pub version: bool,
    /// Socket device: cid=<n>,socket=<path>
    #[arg(long)]
    vsock: Option<String>,
    /// Watchdog device
    #[arg(long)]
    watchdog: bool,
}

impl Args {
    /// Where the API is served, if at all.
    pub fn api_socket(&self) -> anyhow::Result<Option<ApiSocketArg>> {
        one("--api-socket", self.api_socket.as_deref())
    }

    /// Where statistics alone are served, if anywhere.
    pub fn stats_socket(&self) -> anyhow::Result<Option<StatsSocketArg>> {
        Ok(self.exit_stats()?.and_then(|arg| arg.socket))
    }

    fn exit_stats(&self) -> anyhow::Result<Option<ExitStatsArg>> {
        one("--exit-stats", self.exit_stats.as_deref())
    }

    /// Where events are written, if anywhere.
    pub fn event_monitor(&self) -> anyhow::Result<Option<EventMonitorArg>> {
        one("--event-monitor", self.event_monitor.as_deref())
    }

    /// What happens when a thread makes a system call that it should not;
    /// `None` if that is not watched.
    pub fn seccomp(&self) -> anyhow::Result<Option<OnViolation>> {
        match self.seccomp.as_str() {
            "true" => Ok(Some(OnViolation::End)),
            "log" => Ok(Some(OnViolation::Log)),
            "errno" => Ok(Some(OnViolation::Refuse)),
            "false" => Ok(None),
            other => bail!("--seccomp: {other:?} is none of true, false, log, errno"),
        }
    }

    /// The saved machine that goes on, if one does.
    pub fn restore(&self) -> anyhow::Result<Option<RestoreConfig>> {
        one("--restore", self.restore.as_deref())
    }

    /// The machine that the arguments describe, if they describe one.
    pub fn config(&self) -> anyhow::Result<Option<VmConfig>> {
        self.seccomp()?;
        let config = VmConfig {
            cpus: one("--cpus", self.cpus.as_deref())?.unwrap_or_default(),
            memory: self.memory()?,
            payload: self.payload(),
            rate_limit_groups: many("--rate-limit-group", &self.rate_limit_group)?,
            disks: many("--disk", &self.disk)?,
            net: many("--net", &self.net)?,
            rng: one("--rng", self.rng.as_deref())?.unwrap_or_default(),
            balloon: one("--balloon", self.balloon.as_deref())?,
            rtc: one("--rtc", self.rtc.as_deref())?,
            fs: many("--fs", &self.fs)?,
            generic_vhost_user: many("--generic-vhost-user", &self.generic_vhost_user)?,
            pmem: many("--pmem", &self.pmem)?,
            serial: one("--serial", self.serial.as_deref())?.unwrap_or_default(),
            console: one("--console", self.console.as_deref())?.unwrap_or_default(),
            debug_console: one("--debug-console", self.debug_console.as_deref())?
                .unwrap_or_default(),
            devices: many("--device", &self.device)?,
            user_devices: many("--user-device", &self.user_device)?,
            vdpa: many("--vdpa", &self.vdpa)?,
            vsock: one("--vsock", self.vsock.as_deref())?,
            pvpanic: self.pvpanic,
            iommu: false,
            numa: many("--numa", &self.numa)?,
            watchdog: self.watchdog,
            pci_segments: many("--pci-segment", &self.pci_segment)?,
            platform: one("--platform", self.platform.as_deref())?,
            tpm: one("--tpm", self.tpm.as_deref())?,
            landlock_enable: self.landlock,
            landlock_rules: many("--landlock-rules", &self.landlock_rules)?,
            exit_stats: self.exit_stats()?.and_then(|arg| arg.vm),
        };
        if self.restore.is_some() {
            if config != VmConfig::default() {
                bail!(
                    "--restore takes the whole machine from the snapshot: leave out what else \
                     describes one"
                );
            }
            return Ok(None);
        }
        if config.payload.is_some() {
            return Ok(Some(config));
        }
        if config != VmConfig::default() {
            bail!("A machine is described, but neither --kernel nor --firmware says what to boot");
        }
        if self.api_socket.is_none() {
            bail!("Nothing to do: give --kernel to boot, or --api-socket to be told later");
        }
        Ok(None)
    }

    fn memory(&self) -> anyhow::Result<api_client::config::MemoryConfig> {
        let mut memory: api_client::config::MemoryConfig =
            one("--memory", self.memory.as_deref())?.unwrap_or_default();
        memory.zones = many("--memory-zone", &self.memory_zone)?;
        Ok(memory)
    }

    fn payload(&self) -> Option<PayloadConfig> {
        if self.kernel.is_none()
            && self.firmware.is_none()
            && self.initramfs.is_none()
            && self.cmdline.is_none()
        {
            return None;
        }
        Some(PayloadConfig {
            firmware: self.firmware.clone(),
            kernel: self.kernel.clone(),
            cmdline: self.cmdline.clone(),
            initramfs: self.initramfs.clone(),
        })
    }
}

fn one<T>(flag: &'static str, text: Option<&str>) -> anyhow::Result<Option<T>>
where
    T: FromStr,
    T::Err: Error + Send + Sync + 'static,
{
    text.map(|text| text.parse().with_context(|| format!("{flag} {text}")))
        .transpose()
}

fn many<T>(flag: &'static str, texts: &[String]) -> anyhow::Result<Option<Vec<T>>>
where
    T: FromStr,
    T::Err: Error + Send + Sync + 'static,
{
    if texts.is_empty() {
        return Ok(None);
    }
    texts
        .iter()
        .map(|text| text.parse().with_context(|| format!("{flag} {text}")))
        .collect::<anyhow::Result<Vec<T>>>()
        .map(Some)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &[&str]) -> anyhow::Result<Option<VmConfig>> {
        let args =
            Args::try_parse_from(std::iter::once("cloud-hypervisor").chain(line.iter().copied()))?;
        args.config()
    }

    #[test]
    fn flags_are_consistent_and_listed_in_order() {
        let command = Args::command();
        command.clone().debug_assert();
        let names: Vec<String> = command
            .get_arguments()
            .filter_map(|arg| arg.get_long().map(ToOwned::to_owned))
            .collect();
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn a_machine_is_what_its_flags_say() {
        let config = parse(&[
            "--kernel",
            "/k",
            "--initramfs",
            "/i",
            "--cmdline",
            "quiet",
            "--cpus",
            "boot=2",
            "--memory",
            "size=256M",
            "--serial",
            "tty",
            "--console",
            "off",
        ])
        .unwrap()
        .unwrap();
        assert_eq!((config.cpus.boot_vcpus, config.memory.size), (2, 256 << 20));
        assert_eq!(config.payload.unwrap().cmdline.as_deref(), Some("quiet"));
    }

    #[test]
    fn bad_values_name_the_flag() {
        for line in [
            ["--kernel", "/k", "--cpus", "boot=x"],
            ["--kernel", "/k", "--memory", "size=12Q"],
            ["--kernel", "/k", "--serial", "nowhere"],
            ["--kernel", "/k", "--seccomp", "maybe"],
        ] {
            let error = parse(&line).unwrap_err();
            assert!(format!("{error:#}").contains(line[2]), "{error:#}");
        }
    }

    #[test]
    fn a_machine_without_something_to_boot_is_refused() {
        assert!(parse(&["--memory", "size=1G"]).is_err());
        assert!(parse(&["-v"]).is_err());
        assert_eq!(parse(&["--api-socket", "/s"]).unwrap(), None);
        let restore = ["--restore", "source_url=file:///s"];
        assert_eq!(parse(&restore).unwrap(), None);
        let both = [&restore[..], &["--kernel", "/k"]].concat();
        assert!(parse(&both).unwrap_err().to_string().contains("--restore"));
    }
}
