//! Whether the threads of a process can open a file: each one is stopped and
//! made to try, whatever it was doing.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The instruction that enters the kernel.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Below a stack pointer by so much, nobody keeps anything.
const FREE_STACK: u64 = 1024;
const WORD: usize = size_of::<u64>();
const OPENAT: u64 = 257;
const AT_FDCWD: u64 = -100i64 as u64;

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Name of the thread.
    pub thread: String,
    /// A descriptor, or why there is none.
    pub outcome: Result<u64, Errno>,
}

/// Has every thread of a process try to open `path` for reading. What it opens
/// stays open: nothing but a test's process may be asked.
///
/// # Errors
/// A thread cannot be stopped within `timeout`, or is never in a system call.
pub fn try_open(pid: u32, path: &Path, timeout: Duration) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let thread = fs::read_to_string(task.join("comm"))?.trim().to_owned();
        // The kernel's own threads for a process have no user space; KVM's is one
        // since 6.12.
        if thread.starts_with("iou-") || thread == "kvm-nx-lpage-re" {
            continue;
        }
        let number = task
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let number = number.context("A thread has no number")?;
        let outcome = open_in(Pid::from_raw(number), path, timeout)
            .with_context(|| format!("Thread {thread} cannot be asked"))?;
        attempts.push(Attempt { thread, outcome });
    }
    Ok(attempts)
}

fn open_in(thread: Pid, path: &Path, timeout: Duration) -> Result<Result<u64, Errno>> {
    ptrace::seize(thread, Options::empty())?;
    let outcome = open_while_seized(thread, path, timeout);
    ptrace::detach(thread, None)?;
    outcome
}

fn open_while_seized(thread: Pid, path: &Path, timeout: Duration) -> Result<Result<u64, Errno>> {
    let deadline = Instant::now() + timeout;
    let before = loop {
        ptrace::interrupt(thread)?;
        wait_stopped(thread)?;
        let registers = ptrace::getregs(thread)?;
        // One that waits in the kernel goes on behind the instruction.
        let behind = ptrace::read(thread, (registers.rip - 2) as ptrace::AddressType)?;
        if behind.to_le_bytes().starts_with(&SYSCALL) {
            break registers;
        }
        ensure!(Instant::now() < deadline, "It is never in a system call");
        ptrace::cont(thread, None)?;
        sleep(Duration::from_millis(1));
    };
    let place = (before.rsp - FREE_STACK) & !(WORD as u64 - 1);
    let mut name = CString::new(path.as_os_str().as_bytes())?.into_bytes_with_nul();
    name.resize(name.len().next_multiple_of(WORD), 0);
    ensure!(name.len() < FREE_STACK as usize / 2, "The path is too long");
    let mut saved = Vec::new();
    for (address, word) in (place..).step_by(WORD).zip(name.as_chunks::<WORD>().0) {
        let address = address as ptrace::AddressType;
        saved.push((address, ptrace::read(thread, address)?));
        ptrace::write(thread, address, i64::from_le_bytes(*word))?;
    }
    let mut registers = before;
    registers.rip -= SYSCALL.len() as u64;
    registers.rax = OPENAT;
    registers.rdi = AT_FDCWD;
    registers.rsi = place;
    registers.rdx = 0;
    // Not in a system call that would be made again first.
    registers.orig_rax = u64::MAX;
    ptrace::setregs(thread, registers)?;
    ptrace::step(thread, None)?;
    wait_stopped(thread)?;
    let result = ptrace::getregs(thread)?.rax;
    for (address, word) in saved {
        ptrace::write(thread, address, word)?;
    }
    ptrace::setregs(thread, before)?;
    Ok(match -(result as i64) {
        error @ 1..4096 => Err(Errno::from_raw(error as i32)),
        _ => Ok(result),
    })
}

/// Waits until a thread that is traced stands still.
pub(super) fn wait_stopped(thread: Pid) -> Result<()> {
    match waitpid(thread, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) => Ok(()),
        other => bail!("It did not stop: {other:?}"),
    }
}
