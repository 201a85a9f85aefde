//! Tap interfaces: the host's end of the cable. One descriptor is one queue.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::header::HEADER_LENGTH;
use super::ioctl::{self, InterfaceNameError};

const DEVICE: &str = "/dev/net/tun";
/// The kernel puts a number for the last two characters.
const GENERATED_NAME: &str = "vmtap%d";

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel has no tap support, or it may not be used.
    #[error("Cannot open {DEVICE}")]
    Open(#[source] io::Error),
    /// The name.
    #[error(transparent)]
    Name(#[from] InterfaceNameError),
    /// Taken by another program, of another kind, or not permitted.
    #[error("Cannot use the tap interface {0}")]
    Interface(String, #[source] io::Error),
    /// The descriptor is something else.
    #[error("The descriptor is no tap interface")]
    NoTap(#[source] io::Error),
    /// Opened without the header that offloads need.
    #[error("The tap interface {0} was opened without IFF_VNET_HDR or with IFF_TUN")]
    Kind(String),
    /// No socket to set up the interface with.
    #[error("Cannot make a socket to set up {0}")]
    Socket(String, #[source] io::Error),
    /// Part of the set-up.
    #[error("Cannot set the {1} of {0}")]
    SetUp(String, &'static str, #[source] io::Error),
}

/// How the host's side is to look. What is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceParams {
    /// Its address.
    pub ip: Option<IpAddr>,
    /// The mask of it.
    pub mask: Option<IpAddr>,
    /// Hardware address.
    pub mac: Option<[u8; 6]>,
    /// Largest packet.
    pub mtu: Option<u16>,
}

/// One queue of a tap interface. Reading and writing never blocks.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
}

impl Tap {
    /// Opens `queues` queues of the interface `name`, which comes into being if
    /// there is none, and switches it on. Without a name it gets one.
    pub(super) fn open(
        name: Option<&str>,
        queues: usize,
        params: &InterfaceParams,
    ) -> Result<Vec<Self>, TapError> {
        let mut name = name.unwrap_or(GENERATED_NAME).to_owned();
        ioctl::check_name(&name)?;
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // An interface that is there already keeps its kind.
        if existing_flags(&name).map_or(queues > 1, |flags| flags & libc::IFF_MULTI_QUEUE != 0) {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let mut taps = Vec::new();
        for _ in 0..queues {
            let flags_open = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = open(DEVICE, flags_open, Mode::empty())
                .map_err(|error| TapError::Open(error.into()))?;
            name = ioctl::set_interface(file.as_fd(), &name, flags)
                .map_err(|source| TapError::Interface(name.clone(), source))?;
            taps.push(Self::prepare(file, &name)?);
        }
        set_up(&name, params)?;
        Ok(taps)
    }

    /// Takes a queue that somebody else opened.
    pub(super) fn from_descriptor(descriptor: OwnedFd) -> Result<Self, TapError> {
        let (name, flags) = ioctl::interface(descriptor.as_fd()).map_err(TapError::NoTap)?;
        if flags & libc::IFF_VNET_HDR == 0 || flags & libc::IFF_TUN != 0 {
            return Err(TapError::Kind(name));
        }
        let nonblocking = fcntl_getfl(&descriptor)
            .and_then(|flags| fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK));
        nonblocking.map_err(|error| TapError::NoTap(error.into()))?;
        Self::prepare(descriptor, &name)
    }

    fn prepare(descriptor: OwnedFd, name: &str) -> Result<Self, TapError> {
        ioctl::set_header(descriptor.as_fd(), HEADER_LENGTH as libc::c_int)
            .map_err(|source| TapError::SetUp(name.to_owned(), "packet header", source))?;
        Ok(Self {
            file: descriptor.into(),
        })
    }

    /// The interface's largest packet, where it can be told.
    pub(super) fn mtu(&self) -> Option<u16> {
        let (name, _) = ioctl::interface(self.as_fd()).ok()?;
        let socket = socket(AddressFamily::INET).ok()?;
        u16::try_from(ioctl::mtu(socket.as_fd(), &name).ok()?).ok()
    }

    /// Says which unfinished packets may come: bits `TUN_F_*`.
    pub(super) fn set_offload(&self, offload: u32) -> io::Result<()> {
        ioctl::set_offload(self.as_fd(), offload)
    }

    /// Has the interface use this queue, or not.
    pub(super) fn set_attached(&self, attached: bool) -> io::Result<()> {
        ioctl::set_attached(self.as_fd(), attached)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The flags of a tap interface that exists.
fn existing_flags(name: &str) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/tun_flags")).ok()?;
    i32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket_with(
        family,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn set_up(name: &str, params: &InterfaceParams) -> Result<(), TapError> {
    let socket_error = |source| TapError::Socket(name.to_owned(), source);
    let failed = |what| move |source| TapError::SetUp(name.to_owned(), what, source);
    let control = socket(AddressFamily::INET).map_err(socket_error)?;
    let control = control.as_fd();
    if let Some(mac) = params.mac {
        ioctl::set_mac(control, name, mac).map_err(failed("hardware address"))?;
    }
    if let Some(mtu) = params.mtu {
        ioctl::set_mtu(control, name, mtu).map_err(failed("MTU"))?;
    }
    if let Some(ip) = params.ip {
        let set = |socket| ioctl::set_address(socket, name, ip, params.mask);
        let done = if ip.is_ipv6() {
            let socket = socket(AddressFamily::INET6).map_err(socket_error)?;
            set(socket.as_fd())
        } else {
            set(control)
        };
        done.map_err(failed("address"))?;
    }
    ioctl::bring_up(control, name).map_err(failed("state"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for name in ["", "sixteen-bytes-xx", "a/b", "a\0"] {
            let refused = Tap::open(Some(name), 1, &InterfaceParams::default());
            assert!(matches!(refused, Err(TapError::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn a_descriptor_that_is_no_tap_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let refused = Tap::from_descriptor(file.into());
        assert!(matches!(refused, Err(TapError::NoTap(_))));
    }

    #[test]
    fn an_interface_that_is_no_tap_is_refused() {
        let refused = Tap::open(Some("lo"), 1, &InterfaceParams::default());
        assert!(matches!(
            refused,
            Err(TapError::Open(_) | TapError::Interface(..))
        ));
    }
}
