//! The kernel calls that make and set up tap interfaces, with types. The only
//! unsafe code of the device.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_short, c_uint, c_ulong};

// From linux/if_tun.h.
const IFF_ATTACH_QUEUE: c_int = 0x0200;
const IFF_DETACH_QUEUE: c_int = 0x0400;

/// A name that no interface can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of an interface: those have 1 to 15 bytes")]
pub struct InterfaceNameError(pub String);

/// A request about the interface `name`.
fn request(name: &str) -> Result<libc::ifreq, InterfaceNameError> {
    // SAFETY: the structure is plain data, for which zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains(['\0', '/']) {
        return Err(InterfaceNameError(name.to_owned()));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    Ok(request)
}

fn checked(name: &str) -> io::Result<libc::ifreq> {
    request(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Whether an interface can be called so.
pub(super) fn check_name(name: &str) -> Result<(), InterfaceNameError> {
    request(name).map(drop)
}

fn name_of(request: &libc::ifreq) -> String {
    request
        .ifr_name
        .iter()
        .map(|&byte| byte as u8)
        .take_while(|&byte| byte != 0)
        .map(char::from)
        .collect()
}

/// Calls the kernel with a structure.
///
/// # Safety
/// `number` must be a request that takes a pointer to a `T`.
unsafe fn call<T>(fd: BorrowedFd<'_>, number: c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: the pointer is to a `T`, as the caller promises, and borrowed for
    // the call; the descriptor is open.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number as _, std::ptr::from_mut(argument)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes `fd`, freshly opened, a queue of the interface `name`, which comes
/// into being if there is none. Says what the interface is called.
pub(super) fn set_interface(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<String> {
    let mut request = checked(name)?;
    request.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: the request takes an ifreq.
    unsafe { call(fd, libc::TUNSETIFF, &mut request) }?;
    Ok(name_of(&request))
}

/// Name and flags of the interface that `fd` is a queue of.
pub(super) fn interface(fd: BorrowedFd<'_>) -> io::Result<(String, c_int)> {
    // SAFETY: plain data, for which zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the request takes an ifreq.
    unsafe { call(fd, libc::TUNGETIFF, &mut request) }?;
    // SAFETY: the kernel has filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((name_of(&request), c_int::from(flags as u16)))
}

/// Has packets begin with a header of `length` bytes, little-endian.
pub(super) fn set_header(fd: BorrowedFd<'_>, length: c_int) -> io::Result<()> {
    let mut length = length;
    // SAFETY: the request takes an int.
    unsafe { call(fd, libc::TUNSETVNETHDRSZ, &mut length) }?;
    let mut on: c_int = 1;
    // SAFETY: the request takes an int.
    unsafe { call(fd, libc::TUNSETVNETLE, &mut on) }
}

/// Says which unfinished packets the reader of `fd` takes.
pub(super) fn set_offload(fd: BorrowedFd<'_>, offload: c_uint) -> io::Result<()> {
    // SAFETY: the request takes a number, no pointer.
    let result = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETOFFLOAD as _,
            c_ulong::from(offload),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has the interface use the queue `fd`, or not.
pub(super) fn set_attached(fd: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    // SAFETY: plain data, for which zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flag = if attached {
        IFF_ATTACH_QUEUE
    } else {
        IFF_DETACH_QUEUE
    };
    request.ifr_ifru.ifru_flags = flag as c_short;
    // SAFETY: the request takes an ifreq.
    unsafe { call(fd, libc::TUNSETQUEUE, &mut request) }
}

fn ipv4(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: plain data, for which zeroes are a value.
    let mut socket: libc::sockaddr = unsafe { std::mem::zeroed() };
    socket.sa_family = libc::AF_INET as libc::sa_family_t;
    // As in sockaddr_in: two bytes of port, then the address.
    for (place, byte) in socket.sa_data[2..6].iter_mut().zip(address.octets()) {
        *place = byte as libc::c_char;
    }
    socket
}

/// Gives the interface an address and, as the kernel derives it from the
/// address otherwise, a mask.
pub(super) fn set_address(
    socket: BorrowedFd<'_>,
    name: &str,
    address: IpAddr,
    mask: Option<IpAddr>,
) -> io::Result<()> {
    match (address, mask) {
        (IpAddr::V4(address), None) => {
            set_ipv4(socket, libc::SIOCSIFADDR as c_ulong, name, address)
        }
        (IpAddr::V4(address), Some(IpAddr::V4(mask))) => {
            set_ipv4(socket, libc::SIOCSIFADDR as c_ulong, name, address)?;
            set_ipv4(socket, libc::SIOCSIFNETMASK as c_ulong, name, mask)
        }
        (IpAddr::V6(address), mask) => {
            let prefix = match mask {
                None => 64,
                Some(IpAddr::V6(mask)) => u128::from(mask).leading_ones(),
                Some(IpAddr::V4(_)) => return Err(io::ErrorKind::InvalidInput.into()),
            };
            set_ipv6(socket, name, address, prefix)
        }
        (IpAddr::V4(_), Some(IpAddr::V6(_))) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn set_ipv4(
    socket: BorrowedFd<'_>,
    number: c_ulong,
    name: &str,
    address: Ipv4Addr,
) -> io::Result<()> {
    let mut request = checked(name)?;
    request.ifr_ifru.ifru_addr = ipv4(address);
    // SAFETY: both requests that callers pass take an ifreq.
    unsafe { call(socket, number, &mut request) }
}

/// As in linux/ipv6.h, and long enough for any socket's idea of the request.
#[repr(C)]
struct In6Request {
    address: [u8; 16],
    prefix: u32,
    index: c_int,
    rest: [u8; 16],
}
const _: () = assert!(size_of::<In6Request>() >= size_of::<libc::ifreq>());

fn set_ipv6(socket: BorrowedFd<'_>, name: &str, address: Ipv6Addr, prefix: u32) -> io::Result<()> {
    let mut request = checked(name)?;
    // SAFETY: the request takes an ifreq.
    unsafe { call(socket, libc::SIOCGIFINDEX as c_ulong, &mut request) }?;
    let mut address = In6Request {
        address: address.octets(),
        prefix,
        // SAFETY: the kernel has filled in the index.
        index: unsafe { request.ifr_ifru.ifru_ifindex },
        rest: [0; 16],
    };
    // SAFETY: on an IPv6 socket the request takes an in6_ifreq, which
    // `In6Request` begins with; on others an ifreq, which is no longer.
    unsafe { call(socket, libc::SIOCSIFADDR as c_ulong, &mut address) }
}

/// Sets the interface's hardware address.
pub(super) fn set_mac(socket: BorrowedFd<'_>, name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut request = checked(name)?;
    // SAFETY: plain data, for which zeroes are a value.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (place, byte) in address.sa_data.iter_mut().zip(mac) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: the request takes an ifreq.
    unsafe { call(socket, libc::SIOCSIFHWADDR as c_ulong, &mut request) }
}

/// The interface's largest packet.
pub(super) fn mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<c_int> {
    let mut request = checked(name)?;
    // SAFETY: the request takes an ifreq.
    unsafe { call(socket, libc::SIOCGIFMTU as c_ulong, &mut request) }?;
    // SAFETY: the kernel has filled in the number.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

/// Sets the interface's largest packet.
pub(super) fn set_mtu(socket: BorrowedFd<'_>, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = checked(name)?;
    request.ifr_ifru.ifru_mtu = c_int::from(mtu);
    // SAFETY: the request takes an ifreq.
    unsafe { call(socket, libc::SIOCSIFMTU as c_ulong, &mut request) }
}

/// Switches the interface on, unless it is on.
pub(super) fn bring_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = checked(name)?;
    // SAFETY: the request takes an ifreq.
    unsafe { call(socket, libc::SIOCGIFFLAGS as c_ulong, &mut request) }?;
    // SAFETY: the kernel has filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    if c_int::from(flags) & libc::IFF_UP != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as c_short;
    // SAFETY: the request takes an ifreq.
    unsafe { call(socket, libc::SIOCSIFFLAGS as c_ulong, &mut request) }
}
