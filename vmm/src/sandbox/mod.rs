//! What every thread of the VMM starts with, and what it is kept from.
//!
//! [`spawn`] is the one place where threads are started: it names them and
//! turns a panic into the end of the machine, so that a broken device never
//! leaves a guest hanging. A filter of system calls per [`ThreadKind`] belongs
//! here too.

use std::any::Any;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

use crate::event::{EventSink, MachineEvent};

/// What a thread does, which decides what it may ask of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU.
    Vcpu,
    /// Carries terminal input to the serial port.
    SerialInput,
    /// Serves a queue of a disk.
    VirtioBlock,
    /// Serves the entropy device.
    VirtioRng,
    /// Serves a queue pair of a network device.
    VirtioNet,
    /// Serves the console.
    VirtioConsole,
    /// Serves the socket device.
    VirtioVsock,
    /// Serves the memory balloon.
    VirtioBalloon,
    /// Serves the watchdog.
    VirtioWatchdog,
}

/// Starts a thread of a machine. `events` hears of it if it panics.
pub fn spawn<F>(
    name: &str,
    kind: ThreadKind,
    events: EventSink,
    body: F,
) -> io::Result<JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    let label = name.to_owned();
    Builder::new().name(name.to_owned()).spawn(move || {
        log::debug!("thread {label} ({kind:?}) starts");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
            let text = format!("Thread {label} panicked: {}", panic_text(panic.as_ref()));
            events.send(MachineEvent::Failed(text));
        }
    })
}

/// A descriptor that the parent process left open for this one, by its number.
pub fn inherited_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // Above the standard streams.
    const LOWEST: libc::c_int = 3;
    // SAFETY: has no pointer; a number that is no descriptor is an error.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, LOWEST) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the copy is new, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_panic_ends_the_machine_with_its_message() {
        let (sender, events) = channel();
        let sink = EventSink::new(move |event| sender.send(event).unwrap());
        let thread = spawn("doomed", ThreadKind::Vcpu, sink, || panic!("no {}", "luck")).unwrap();
        thread.join().unwrap();
        assert_eq!(
            events.recv(),
            Ok(MachineEvent::Failed(
                "Thread doomed panicked: no luck".into()
            ))
        );
    }
}
