//! How many descriptors the process may have, and who gets them.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that devices with a client each leave alone: those of 512
/// clients of the API, and those of guest memory, vCPUs, disks and networks.
const RESERVED: u64 = 768;
/// What such a device gets where there are even fewer.
const LEAST: u64 = 64;

/// Lets the process have as many descriptors as it may give itself. Linux hands
/// out 1024 for the sake of programs that use `select`, which is none of ours.
///
/// # Errors
/// The kernel refuses.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            ..limit
        };
        setrlimit(Resource::Nofile, raised)?;
    }
    Ok(())
}

/// Of the descriptors that there are, how many a device may use that wants
/// `wanted`, one for each of its clients.
#[must_use]
pub fn descriptor_share(wanted: usize) -> usize {
    share(getrlimit(Resource::Nofile).current, wanted)
}

fn share(limit: Option<u64>, wanted: usize) -> usize {
    let Some(limit) = limit else { return wanted };
    let share = limit.saturating_sub(RESERVED).max(LEAST);
    usize::try_from(share).map_or(wanted, |share| share.min(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_what_the_others_leave() {
        for (limit, expected) in [
            (None, 1023),
            (Some(1 << 20), 1023),
            (Some(1024), 256),
            (Some(100), 64),
        ] {
            assert_eq!(share(limit, 1023), expected);
        }
    }
}
