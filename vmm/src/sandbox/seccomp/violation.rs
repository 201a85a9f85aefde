//! The end of a process one of whose threads asked for what it may not. Runs
//! as a signal handler: nothing here allocates or locks.

use std::io;

use libc::{c_int, c_void};
use syscalls::Sysno;

use crate::sandbox::signal::{Line, thread_name};

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
    let mut line = Line::default();
    line.text(b"cloud-hypervisor: thread ");
    thread_name(&mut line);
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
    line.print();
    // SAFETY: ends the process. Every filter allows it.
    unsafe { libc::_exit(libc::EXIT_FAILURE) }
}
