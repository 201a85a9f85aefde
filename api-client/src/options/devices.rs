//! Flags of the remaining devices: `--rng`, `--rtc`, `--vsock`, `--pmem`,
//! `--fs`, `--balloon`, `--generic-vhost-user`, `--vdpa`, `--device`,
//! `--user-device`, `--tpm`; `--landlock-rules`.

use std::str::FromStr;

use super::pci::{PCI_KEYS, pci_common, with_pci};
use super::{OptionError, Options, required};
use crate::config::{
    BalloonConfig, DeviceConfig, FsConfig, GenericVhostUserConfig, LandlockConfig, PmemConfig,
    RngConfig, RtcConfig, TpmConfig, UserDeviceConfig, VdpaConfig, VsockConfig,
};

impl FromStr for RngConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &with_pci(&["src"]), &[])?;
        Ok(RngConfig {
            pci_common: pci_common(&options)?,
            src: options
                .text("src")
                .map_or_else(|| RngConfig::default().src, Into::into),
        })
    }
}

impl FromStr for RtcConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &PCI_KEYS, &[])?;
        Ok(RtcConfig {
            pci_common: pci_common(&options)?,
        })
    }
}

impl FromStr for VsockConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &with_pci(&["cid", "socket"]), &[])?;
        Ok(VsockConfig {
            pci_common: pci_common(&options)?,
            cid: required("cid", options.number("cid")?)?,
            socket: required("socket", options.text("socket"))?.into(),
        })
    }
}

impl FromStr for PmemConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse_for(
            "PmemConfig",
            text,
            &with_pci(&["file", "size", "discard_writes"]),
            &[],
        )?;
        Ok(PmemConfig {
            pci_common: pci_common(&options)?,
            file: required("file", options.text("file"))?.into(),
            size: options.size("size")?,
            discard_writes: options.toggle("discard_writes")?.unwrap_or(false),
        })
    }
}

impl FromStr for FsConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let keys = with_pci(&["tag", "socket", "num_queues", "queue_size"]);
        let options = Options::parse_for("FsConfig", text, &keys, &[])?;
        let default = FsConfig::default();
        Ok(FsConfig {
            pci_common: pci_common(&options)?,
            tag: required("tag", options.text("tag"))?,
            socket: required("socket", options.text("socket"))?.into(),
            num_queues: options.number("num_queues")?.unwrap_or(default.num_queues),
            queue_size: options.number("queue_size")?.unwrap_or(default.queue_size),
        })
    }
}

impl FromStr for BalloonConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let keys = with_pci(&["size", "deflate_on_oom", "free_page_reporting"]);
        let options = Options::parse(text, &keys, &[])?;
        Ok(BalloonConfig {
            pci_common: pci_common(&options)?,
            size: options.size("size")?.unwrap_or(0),
            deflate_on_oom: options.toggle("deflate_on_oom")?.unwrap_or(false),
            free_page_reporting: options.toggle("free_page_reporting")?.unwrap_or(false),
        })
    }
}

impl FromStr for GenericVhostUserConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let keys = with_pci(&["device_type", "socket", "queue_sizes"]);
        let options = Options::parse(text, &keys, &[])?;
        Ok(GenericVhostUserConfig {
            pci_common: pci_common(&options)?,
            socket: required("socket", options.text("socket"))?.into(),
            queue_sizes: required("queue_sizes", options.numbers("queue_sizes")?)?,
            device_type: required("device_type", options.number("device_type")?)?,
        })
    }
}

impl FromStr for VdpaConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &with_pci(&["path", "num_queues"]), &[])?;
        Ok(VdpaConfig {
            pci_common: pci_common(&options)?,
            path: required("path", options.text("path"))?.into(),
            num_queues: options
                .number("num_queues")?
                .unwrap_or(VdpaConfig::default().num_queues),
        })
    }
}

impl FromStr for DeviceConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let keys = with_pci(&["path", "fd", "x_nv_gpudirect_clique", "x_exclude_mmap_bars"]);
        let options = Options::parse(text, &keys, &[])?;
        let (path, fd) = (options.text("path"), options.descriptor("fd")?);
        if path.is_some() == fd.is_some() {
            return Err(OptionError::Combination(
                "exactly one of path and fd must be given".into(),
            ));
        }
        Ok(DeviceConfig {
            pci_common: pci_common(&options)?,
            path: path.map(Into::into),
            fd,
            x_nv_gpudirect_clique: options.number("x_nv_gpudirect_clique")?,
            x_exclude_mmap_bars: options.numbers("x_exclude_mmap_bars")?,
        })
    }
}

impl FromStr for UserDeviceConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &with_pci(&["socket"]), &[])?;
        Ok(UserDeviceConfig {
            pci_common: pci_common(&options)?,
            socket: required("socket", options.text("socket"))?.into(),
        })
    }
}

impl FromStr for TpmConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &["socket"], &[])?;
        Ok(TpmConfig {
            socket: required("socket", options.text("socket"))?.into(),
        })
    }
}

impl FromStr for LandlockConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let options = Options::parse(text, &["path", "access"], &[])?;
        let access = required("access", options.text("access"))?;
        // Brackets are optional round it.
        let access = access.trim_matches(['[', ']']).to_owned();
        if !["r", "w", "rw"].contains(&access.as_str()) {
            return Err(OptionError::Value {
                key: "access".into(),
                value: access,
                expected: "r, w or rw".into(),
            });
        }
        Ok(LandlockConfig {
            path: required("path", options.text("path"))?.into(),
            access,
        })
    }
}
