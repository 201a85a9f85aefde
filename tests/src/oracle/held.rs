//! A thread that is kept from running.

use std::marker::PhantomData;

use anyhow::Result;
use nix::sys::ptrace::{self, Options};
use nix::unistd::Pid;

use super::open::wait_stopped;
use super::process_watch::thread_named;

/// A thread of another process that stands still for as long as this lives. It can
/// be let go of by the thread alone that holds it.
#[derive(Debug)]
pub struct HeldThread {
    thread: Pid,
    not_sent: PhantomData<*const ()>,
}

impl HeldThread {
    /// Stops the thread of a process that has this name.
    ///
    /// # Errors
    /// There is none, or it cannot be traced.
    pub fn hold(pid: u32, name: &str) -> Result<HeldThread> {
        let thread = Pid::from_raw(i32::try_from(thread_named(pid, name)?)?);
        ptrace::seize(thread, Options::empty())?;
        let held = HeldThread {
            thread,
            not_sent: PhantomData,
        };
        ptrace::interrupt(thread)?;
        wait_stopped(thread)?;
        Ok(held)
    }
}

impl Drop for HeldThread {
    fn drop(&mut self) {
        // Fails if the process is gone.
        let _ = ptrace::detach(self.thread, None);
    }
}
