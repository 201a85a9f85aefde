//! `--exit-stats`: the VM's accounting, and the read-only socket of the
//! process.

use std::path::PathBuf;
use std::str::FromStr;

use super::{OptionError, Options};
use crate::config::ExitStatsConfig;

/// Permission bits that a socket may have: reading and writing.
const MAX_MODE: u32 = 0o666;

/// All that `--exit-stats` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitStatsArg {
    /// What concerns the VM; `None` if nothing was said about it.
    pub vm: Option<ExitStatsConfig>,
    /// Where statistics are served, besides the API socket.
    pub socket: Option<StatsSocketArg>,
}

/// A socket at which statistics can be read and nothing be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsSocketArg {
    /// Where it is.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// The group that owns it, by name or number; the process's own if `None`.
    pub group: Option<String>,
}

impl FromStr for ExitStatsArg {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let keys = ["guest_leaves", "latency", "socket", "mode", "group"];
        let options = Options::parse(text, &keys, &[])?;
        let default = ExitStatsConfig::default();
        let (leaves, latency) = (options.toggle("guest_leaves")?, options.toggle("latency")?);
        let vm = (leaves.is_some() || latency.is_some()).then(|| ExitStatsConfig {
            guest_leaves: leaves.unwrap_or(default.guest_leaves),
            latency: latency.unwrap_or(default.latency),
        });
        Ok(ExitStatsArg {
            vm,
            socket: socket(&options)?,
        })
    }
}

fn socket(options: &Options) -> Result<Option<StatsSocketArg>, OptionError> {
    let (mode, group) = (options.text("mode"), options.text("group"));
    let Some(path) = options.text("socket") else {
        if mode.is_some() || group.is_some() {
            return Err(OptionError::Combination(
                "mode and group are those of a socket, and socket is not given".into(),
            ));
        }
        return Ok(None);
    };
    let mode = match mode {
        Some(text) => u32::from_str_radix(&text, 8)
            .ok()
            .filter(|mode| mode & !MAX_MODE == 0 && !text.starts_with('+'))
            .ok_or_else(|| {
                OptionError::Combination(format!(
                    "invalid value \"{text}\" for \"mode\": octal permissions from 0 to 0666 are valid"
                ))
            })?,
        // To connect takes the right to write.
        None if group.is_some() => 0o660,
        None => 0o600,
    };
    Ok(Some(StatsSocketArg {
        path: path.into(),
        mode,
        group,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ExitStatsArg, OptionError> {
        text.parse()
    }

    #[test]
    fn a_socket_alone_says_nothing_about_the_vm() {
        let arg = parse("socket=/run/s").unwrap();
        assert_eq!(arg.vm, None);
        assert_eq!(
            arg.socket,
            Some(StatsSocketArg {
                path: "/run/s".into(),
                mode: 0o600,
                group: None
            })
        );
        assert_eq!(parse("latency=on").unwrap().socket, None);
        assert!(parse("latency=on").unwrap().vm.unwrap().latency);
    }

    #[test]
    fn a_group_may_connect_unless_the_mode_says_otherwise() {
        let mode = |text| parse(text).unwrap().socket.unwrap().mode;
        assert_eq!(mode("socket=/s,group=monitor"), 0o660);
        assert_eq!(mode("socket=/s,group=monitor,mode=0600"), 0o600);
        assert_eq!(mode("socket=/s,mode=666"), 0o666);
    }

    #[test]
    fn what_no_socket_can_have_is_refused() {
        for text in [
            "socket=/s,mode=0777",
            "socket=/s,mode=4660",
            "socket=/s,mode=888",
            "socket=/s,mode=+660",
            "mode=660",
            "group=monitor",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
