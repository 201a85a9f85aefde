//! How many descriptors the process may have, and who gets them.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, open, readlinkat, seek};
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

/// Where the kernel lists this process's descriptors. Opened before Landlock takes
/// the path away.
#[derive(Debug)]
pub struct OpenDescriptors(OwnedFd);

/// Descriptors that are looked at, at most.
const MOST: usize = 1 << 16;

impl OpenDescriptors {
    /// Opens the list.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(open(c"/proc/self/fd", flags, Mode::empty())?))
    }

    /// How many descriptors are open, by kind. This list's own is among them.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub fn count(&self) -> io::Result<BTreeMap<&'static str, u64>> {
        let mut kinds = BTreeMap::new();
        seek(&self.0, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 8 << 10];
        let mut entries = RawDir::new(&self.0, &mut buffer);
        let mut seen = 0;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes().starts_with(b".") {
                continue;
            }
            seen += 1;
            if seen > MOST {
                break;
            }
            // One that was closed meanwhile is not counted.
            if let Some(kind) = self.kind(name) {
                *kinds.entry(kind).or_default() += 1;
            }
        }
        Ok(kinds)
    }

    fn kind(&self, name: &CStr) -> Option<&'static str> {
        let target = readlinkat(&self.0, name, Vec::new()).ok()?;
        Some(kind_of(&target.to_string_lossy()))
    }
}

/// What a descriptor is, from what the kernel says that it leads to.
fn kind_of(target: &str) -> &'static str {
    const PREFIXES: [(&str, &str); 17] = [
        ("anon_inode:kvm-vm", "kvm-vm"),
        ("anon_inode:kvm-vcpu-stats", "kvm-vcpu-stats"),
        ("anon_inode:kvm-vcpu:", "kvm-vcpu"),
        ("anon_inode:[eventfd", "eventfd"),
        ("anon_inode:[eventpoll", "epoll"),
        ("anon_inode:[timerfd", "timerfd"),
        ("anon_inode:[io_uring", "io_uring"),
        ("anon_inode:", "other"),
        ("/memfd:", "memfd"),
        ("socket:", "socket"),
        ("pipe:", "pipe"),
        ("/dev/kvm", "kvm"),
        ("/dev/net/tun", "tap"),
        ("/dev/pts/", "terminal"),
        ("/dev/tty", "terminal"),
        ("/dev/", "device"),
        ("/", "file"),
    ];
    let known = PREFIXES
        .iter()
        .find(|(prefix, _)| target.starts_with(prefix));
    known.map_or("other", |(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_are_counted_by_kind() {
        let list = OpenDescriptors::open().unwrap();
        let of = |kind| list.count().unwrap().get(kind).copied().unwrap_or(0);
        let before = of("socket");
        let sockets: Vec<_> = (0..100).map(|_| UnixStream::pair().unwrap()).collect();
        // Other tests run beside this one.
        assert!(of("socket") >= before.saturating_sub(50) + 200);
        drop(sockets);
        let _file = File::open("/proc/version").unwrap();
        assert!(of("file") >= 2);
    }

    #[test]
    fn kinds_are_told_from_where_a_descriptor_leads() {
        for (target, kind) in [
            ("anon_inode:[eventfd]", "eventfd"),
            ("anon_inode:[eventpoll]", "epoll"),
            ("anon_inode:kvm-vm", "kvm-vm"),
            ("anon_inode:kvm-vcpu:3", "kvm-vcpu"),
            ("anon_inode:kvm-vcpu-stats:3", "kvm-vcpu-stats"),
            ("anon_inode:[signalfd]", "other"),
            ("socket:[123]", "socket"),
            ("/memfd:guest-ram (deleted)", "memfd"),
            ("/dev/net/tun", "tap"),
            ("/dev/null", "device"),
            ("/var/disk", "file"),
            ("mnt:[1]", "other"),
        ] {
            assert_eq!(kind_of(target), kind, "{target}");
        }
    }

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
