//! How the program starts and ends on the C library alone.
#![allow(unsafe_code)]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_int};
use core::panic::PanicInfo;

use libc_alloc::LibcAlloc;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

#[global_allocator]
static ALLOCATOR: LibcAlloc = LibcAlloc;

/// The entry, which the C library's start-up code calls.
// SAFETY: no other symbol of the program is called main.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    // So that writing to a pipe that nobody reads is an error, as Rust has it.
    // SAFETY: sets a disposition, runs no handler; there is no other thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let count = usize::try_from(count).unwrap_or(0);
    let bytes: Vec<&[u8]> = (1..count)
        .map(|index| {
            // SAFETY: the C library passes `count` pointers, each to a string that
            // ends in NUL, and neither moves nor changes them while main runs.
            unsafe { CStr::from_ptr(*arguments.add(index)) }.to_bytes()
        })
        .collect();
    c_int::from(crate::run(&bytes))
}

#[panic_handler]
fn panicked(info: &PanicInfo) -> ! {
    crate::complain(&format!("{info}"));
    // SAFETY: abort has no conditions.
    unsafe { libc::abort() }
}

/// The precompiled `alloc` names this routine in its unwind tables. As panics
/// abort, nothing unwinds and nothing calls it.
// SAFETY: no other symbol of the program has this name.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

// The static C library wants GCC's unwinder, which Rust's runtime would bring.
#[link(name = "gcc_eh", kind = "static", modifiers = "-bundle")]
#[link(name = "c", kind = "static", modifiers = "-bundle")]
// SAFETY: names two libraries and declares nothing.
unsafe extern "C" {}

/// Standard output.
pub fn stdout() -> BorrowedFd<'static> {
    // SAFETY: nothing here closes it. Was it closed at the start, then writing
    // fails: the program opens no file that could take its number.
    unsafe { rustix::stdio::stdout() }
}

/// Standard error.
pub fn stderr() -> BorrowedFd<'static> {
    // SAFETY: as for standard output.
    unsafe { rustix::stdio::stderr() }
}

/// What an error number means.
pub fn describe(error: Errno) -> String {
    let number = error.raw_os_error();
    // SAFETY: the text that strerror returns ends in NUL and stays until its next
    // call, which only this one thread could make; it is copied before.
    let text = unsafe { CStr::from_ptr(libc::strerror(number)) };
    format!("{} (os error {number})", text.to_string_lossy())
}
