//! What signal handlers say. Nothing here allocates or locks.
//!
//! A fault of this program, a stack that is full, or a file of guest memory
//! that became shorter end the process by a signal. It says so first, with the
//! thread.

use std::io;

use libc::{c_int, c_void};

/// A thread's name has 15 bytes and a zero at the most.
const NAME_LENGTH: usize = 16;

/// Has the process say which thread a fault of memory ends it on. What the
/// signal does stays as it is.
///
/// # Errors
/// The kernel's.
pub fn explain_faults() -> io::Result<()> {
    // SAFETY: the structure is plain data, for which zeroes are a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = fault as *const () as usize;
    // The stack may be full. After the message the instruction is tried again,
    // and the signal does what it would have done.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: `action` is initialised, and its handler has the signature
        // that SA_SIGINFO asks for and does nothing that a handler may not.
        if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn fault(signal: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let mut line = Line::default();
    line.text(b"cloud-hypervisor: thread ");
    thread_name(&mut line);
    line.text(if signal == libc::SIGBUS {
        b" got SIGBUS: a file that holds guest memory is shorter than it was, \
          or the host's memory or storage failed; the VM ends\n"
    } else {
        b" got SIGSEGV: its stack is full, or this program is at fault; the VM ends\n"
    });
    line.print();
}

/// Adds the name of the calling thread.
pub(super) fn thread_name(line: &mut Line) {
    let mut name = [0u8; NAME_LENGTH];
    // SAFETY: the kernel writes 16 bytes at most. Every filter allows it.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    line.text(name.split(|&byte| byte == 0).next().unwrap_or_default());
}

/// A line of text of bounded length.
pub(super) struct Line {
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
    pub(super) fn text(&mut self, text: &[u8]) {
        for (place, &byte) in self.bytes.iter_mut().skip(self.length).zip(text) {
            *place = byte;
            self.length += 1;
        }
    }

    pub(super) fn number(&mut self, number: u32) {
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

    /// Writes it to standard error.
    pub(super) fn print(&self) {
        // SAFETY: the bytes are in `self`. Every filter allows it.
        unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.length) };
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

    const CHILD: &str = "SIGNAL_TEST_CHILD";

    /// The process that the next test starts; nothing when run with the others.
    #[test]
    fn child() {
        let Ok(kind) = std::env::var(CHILD) else {
            return;
        };
        explain_faults().unwrap();
        let thread = std::thread::Builder::new().name("victim".into());
        let thread = thread.spawn(move || {
            if kind == "stack" {
                fn deeper(level: u64) -> u64 {
                    let padding = std::hint::black_box([level; 64]);
                    if level == u64::MAX {
                        return 0;
                    }
                    deeper(level + 1) + padding[1]
                }
                std::process::exit(deeper(0) as i32);
            }
            let file = tempfile::tempfile().unwrap();
            file.set_len(4096).unwrap();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            // SAFETY: a new mapping disturbs nobody.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ,
                    libc::MAP_SHARED,
                    fd,
                    0,
                )
            };
            file.set_len(0).unwrap();
            // SAFETY: it is mapped; that there is nothing is what is tried.
            unsafe { start.cast::<u8>().read_volatile() };
        });
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn a_fault_names_its_thread_and_the_signal_stays_what_it_is() {
        use std::os::unix::process::ExitStatusExt;

        for (kind, signal, said) in [
            ("stack", libc::SIGSEGV, "thread victim got SIGSEGV"),
            ("file", libc::SIGBUS, "thread victim got SIGBUS"),
        ] {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "sandbox::signal::tests::child", "--nocapture"])
                .env(CHILD, kind)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains(said), "{text}");
            assert_eq!(output.status.signal(), Some(signal), "{text}");
        }
    }
}
