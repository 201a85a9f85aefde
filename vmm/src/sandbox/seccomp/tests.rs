//! Each test runs what must die in a process of its own: this program again,
//! told by a variable to run one thread of one kind.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use super::*;
use crate::event::EventSink;
use crate::sandbox::spawn;

const KIND: &str = "SANDBOX_TEST_KIND";
const CALL: &str = "SANDBOX_TEST_CALL";
const MODE_NAME: &str = "SANDBOX_TEST_MODE";

/// A call that only succeeds when it is made: the process id of the parent.
fn harmless_but_forbidden() -> i32 {
    // SAFETY: has no arguments and always succeeds.
    unsafe { libc::syscall(libc::SYS_getppid) as i32 }
}

fn calls(name: &str) -> i32 {
    match name {
        "getppid" => harmless_but_forbidden(),
        "execve" => Command::new("/bin/true").status().map_or(-1, |_| 0),
        "open" => std::fs::File::open("/proc/version").map_or(-1, |_| 0),
        "socket" => std::os::unix::net::UnixStream::connect("/").map_or(-1, |_| 0),
        // SAFETY: a ring of no entries is an error.
        "ring" => unsafe {
            libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null::<u8>()) as i32
        },
        "unlink" => std::fs::remove_file("/").map_or(-1, |()| 0),
        "executable" => {
            // SAFETY: a new mapping disturbs nobody.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            if start == libc::MAP_FAILED { -1 } else { 0 }
        }
        // SAFETY: a descriptor that is not open is an error.
        "ioctl" => unsafe { libc::ioctl(-1, libc::TIOCSTI, std::ptr::null::<u8>()) },
        // Nothing but what every thread does.
        _ => {
            let text = vec![1u8; 1 << 20];
            std::thread::yield_now();
            i32::from(text[4096]) - 1
        }
    }
}

/// The process that the tests start; nothing when it is run with the others.
#[test]
fn child() {
    let (Ok(kind), Ok(call)) = (std::env::var(KIND), std::env::var(CALL)) else {
        return;
    };
    let mode = match std::env::var(MODE_NAME).as_deref() {
        Ok("log") => OnViolation::Log,
        Ok("errno") => OnViolation::Refuse,
        _ => OnViolation::End,
    };
    let kind = *ThreadKind::ALL
        .iter()
        .find(|known| format!("{known:?}") == kind)
        .unwrap();
    enforce(mode).unwrap();
    let sink = EventSink::new(|event| eprintln!("event {event:?}"));
    let thread = spawn("suspect", kind, sink, move || {
        let result = calls(&call);
        eprintln!(
            "the call gave {}",
            if result < 0 { "an error" } else { "no error" }
        );
    });
    thread.unwrap().join().unwrap();
    eprintln!("the thread ended");
}

fn run(kind: ThreadKind, call: &str, mode: &str) -> (Output, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::seccomp::tests::child", "--nocapture"])
        .env(KIND, format!("{kind:?}"))
        .env(CALL, call)
        .env(MODE_NAME, mode)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

fn must_end(kind: ThreadKind, call: &str, named: &str) {
    let (output, said) = run(kind, call, "true");
    let message = format!("thread suspect made the system call {named} (");
    assert!(said.contains(&message), "{kind:?}: {said}");
    assert!(!said.contains("the call gave"), "{kind:?}: {said}");
    assert_eq!(output.status.code(), Some(1), "{kind:?}: {said}");
    assert_eq!(output.status.signal(), None);
}

#[test]
fn every_kind_lives_with_what_all_threads_do() {
    for &kind in ThreadKind::ALL {
        let (output, said) = run(kind, "nothing", "true");
        assert!(said.contains("the thread ended"), "{kind:?}: {said}");
        assert!(output.status.success(), "{kind:?}: {said}");
    }
}

#[test]
fn a_call_that_no_kind_makes_ends_the_process_and_is_named() {
    for &kind in ThreadKind::ALL {
        must_end(kind, "getppid", "getppid");
    }
}

#[test]
fn nobody_makes_memory_that_can_be_executed() {
    for &kind in ThreadKind::ALL {
        must_end(kind, "executable", "mmap");
    }
}

#[test]
fn requests_to_devices_are_told_apart() {
    for &kind in ThreadKind::ALL {
        must_end(kind, "ioctl", "ioctl");
    }
}

#[test]
fn only_the_control_thread_opens_files() {
    for &kind in ThreadKind::ALL {
        if kind != ThreadKind::Control {
            must_end(kind, "open", "openat");
        }
    }
    let (_, said) = run(ThreadKind::Control, "open", "true");
    assert!(said.contains("the call gave no error"), "{said}");
}

#[test]
fn only_who_connects_to_host_programs_makes_sockets() {
    for &kind in ThreadKind::ALL {
        if kind != ThreadKind::Control && kind != ThreadKind::VirtioVsock {
            must_end(kind, "socket", "socket");
        }
    }
}

#[test]
fn only_who_owns_a_socket_removes_files() {
    let owners = [
        ThreadKind::Control,
        ThreadKind::Api,
        ThreadKind::VirtioVsock,
    ];
    for &kind in ThreadKind::ALL {
        if !owners.contains(&kind) {
            must_end(kind, "unlink", "unlink");
        }
    }
}

#[test]
fn only_the_control_thread_makes_rings() {
    for &kind in ThreadKind::ALL {
        if kind != ThreadKind::Control {
            must_end(kind, "ring", "io_uring_setup");
        }
    }
    let (_, said) = run(ThreadKind::Control, "ring", "true");
    assert!(said.contains("the call gave an error"), "{said}");
}

#[test]
fn programs_are_not_started() {
    let (output, said) = run(ThreadKind::Control, "execve", "true");
    assert!(!said.contains("the call gave no error"), "{said}");
    assert!(said.contains("which its filter forbids"), "{said}");
    assert!(!output.status.success());
}

#[test]
fn logging_lets_calls_pass_and_refusing_makes_them_fail() {
    let kind = ThreadKind::VirtioRng;
    let (_, said) = run(kind, "open", "log");
    assert!(said.contains("the call gave no error"), "{said}");
    let (_, said) = run(kind, "open", "errno");
    assert!(said.contains("the call gave an error"), "{said}");
}
