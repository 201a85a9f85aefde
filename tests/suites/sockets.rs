//! In a guest: many connections to one port of the host.

use std::io::{Write, stdout};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const HOST: u32 = 2;

/// Lets this process have as many descriptors as it may give itself.
pub fn raise_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).context("Cannot have more descriptors")
}

/// Connects so often, says how often it worked, and holds on to what it has.
pub fn hold(port: u32, count: u32) -> Result<()> {
    raise_limit()?;
    let mut held = Vec::new();
    for _ in 0..count {
        let flags = SockFlag::SOCK_CLOEXEC;
        let stream = socket(AddressFamily::Vsock, SockType::Stream, flags, None)
            .context("Cannot make a socket")?;
        if connect(stream.as_raw_fd(), &VsockAddr::new(HOST, port)).is_ok() {
            held.push(stream);
        }
    }
    let refused = count as usize - held.len();
    println!("held={} refused={refused}", held.len());
    stdout().flush()?;
    loop {
        sleep(Duration::from_secs(1000));
    }
}
