//! The end of a process one of whose threads asked for what it may not. Runs
//! as a signal handler: nothing here allocates or locks.

use std::io;

use libc::{c_int, c_void};
use syscalls::Sysno;

/// Where a signal from a filter says what was asked for; the part of the
/// kernel's `siginfo_t` for `SIGSYS` on a 64-bit machine.
#[repr(C)]
struct Information {
    _signal: c_int,
    _error: c_int,
    code: c_int,
    _padding: c_int,
    _address: u64,
    call: c_int,
    _architecture: u32,
}

/// The signal comes from a filter.
const SYS_SECCOMP: c_int = 1;
/// A thread's name has 15 bytes and a zero at the most.
const NAME_LENGTH: usize = 16;

/// Has the process end with a message when a filter is violated.
pub(super) fn install_handler() -> io::Result<()> {
    // SAFETY: the structure is plain data, for which zeroes are a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: `action` is initialised, and its handler has the signature that
    // SA_SIGINFO asks for and does nothing that a handler may not.
    if unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn handler(_: c_int, information: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY:
    // - The kernel passes a pointer to its structure, which is larger than
    //   this part of it and as aligned.
    // - The part is that for SIGSYS, which is the only signal handled here.
    let information = unsafe { &*information.cast::<Information>() };
    let mut name = [0u8; NAME_LENGTH];
    // SAFETY: the kernel writes 16 bytes at most. Every filter allows it.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let mut line = Line::default();
    line.text(b"cloud-hypervisor: thread ");
    line.text(name.split(|&byte| byte == 0).next().unwrap_or_default());
    if information.code == SYS_SECCOMP {
        line.text(b" made the system call ");
        let known = usize::try_from(information.call).ok().and_then(Sysno::new);
        line.text(known.map_or("unknown", |call| call.name()).as_bytes());
        line.text(b" (");
        line.number(information.call.unsigned_abs());
        line.text(b"), which its filter forbids; the VM ends\n");
    } else {
        line.text(b" got a signal SIGSYS from elsewhere; the VM ends\n");
    }
    // SAFETY: the bytes are in `line`. Every filter allows both calls.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length);
        libc::_exit(libc::EXIT_FAILURE);
    }
}

struct Line {
    bytes: [u8; 192],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 192],
            length: 0,
        }
    }
}

impl Line {
    fn text(&mut self, text: &[u8]) {
        for (place, &byte) in self.bytes.iter_mut().skip(self.length).zip(text) {
            *place = byte;
            self.length += 1;
        }
    }

    fn number(&mut self, number: u32) {
        let mut digits = [0; 10];
        let mut rest = number;
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.text(&digits[first..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_what_fits() {
        let mut line = Line::default();
        line.text(b"n ");
        line.number(0);
        line.number(u32::MAX);
        assert_eq!(&line.bytes[..line.length], b"n 04294967295");
        line.text(&[b'x'; 500]);
        assert_eq!(line.length, line.bytes.len());
    }
}
