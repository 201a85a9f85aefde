//! Sources of events, in the terms of [`std::io`].

use std::io;
use std::os::fd::AsRawFd;

use event_manager::{EventOps, Events};
use vmm_sys_util::epoll::EventSet;

/// What a subscriber of an event manager waits for. A source is known by the number of its descriptor,
/// so it is taken out before that is closed. Everything of a
/// subscriber is taken out with it.
pub trait Sources {
    /// Waits for `source` to become readable, too.
    ///
    /// # Errors
    /// The kernel's: `EPERM` for what cannot be waited for.
    fn add_source(&mut self, source: &impl AsRawFd, token: u32) -> io::Result<()>;

    /// Changes what is waited for: reading, writing, or nothing for a while.
    ///
    /// # Errors
    /// The kernel's.
    fn modify_source(
        &mut self,
        source: &impl AsRawFd,
        events: EventSet,
        token: u32,
    ) -> io::Result<()>;

    /// Waits for `source` no more.
    ///
    /// # Errors
    /// It was not waited for.
    fn remove_source(&mut self, source: &impl AsRawFd) -> io::Result<()>;
}

impl Sources for EventOps<'_> {
    fn add_source(&mut self, source: &impl AsRawFd, token: u32) -> io::Result<()> {
        self.add(Events::with_data(source, token, EventSet::IN))
            .map_err(io_error)
    }

    fn modify_source(
        &mut self,
        source: &impl AsRawFd,
        events: EventSet,
        token: u32,
    ) -> io::Result<()> {
        self.modify(Events::with_data(source, token, events))
            .map_err(io_error)
    }

    fn remove_source(&mut self, source: &impl AsRawFd) -> io::Result<()> {
        self.remove(Events::empty(source)).map_err(io_error)
    }
}

/// The kernel's error behind an event manager's.
pub fn io_error(error: event_manager::Error) -> io::Error {
    match error {
        event_manager::Error::Epoll(errno) => io::Error::from_raw_os_error(errno.errno()),
        other => io::Error::other(other),
    }
}
