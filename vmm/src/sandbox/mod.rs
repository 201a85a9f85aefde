//! What every thread of the VMM starts with, and what it is kept from.
//!
//! [`spawn`] is the one place where a machine's threads are started: it names
//! them, puts a filter of system calls on them, and turns a panic into the end
//! of the machine, so that a broken device never leaves a guest hanging.

mod affinity;
mod descriptors;
mod landlock;
mod preemption;
mod seccomp;
mod signal;
mod threads;

use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;

pub use affinity::bind_to_cpus;
pub use descriptors::{OpenDescriptors, descriptor_share, raise_descriptor_limit};
pub use preemption::{is_scheduled_normally, preempt_when_woken};

use crate::event::{EventSink, MachineEvent};

pub use landlock::{LandlockError, PathAccess, PathRule, confine, confine_early};
pub use seccomp::{Filter, OnViolation, SeccompError, enforce, enforced};
pub use signal::explain_faults;
pub use threads::{EnrolledThread, ThreadRecord, enrol_thread, threads};

/// What a thread does, which decides what it may ask of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Owns the machine and starts all of its threads.
    Control,
    /// Serves the API.
    Api,
    /// Reads the live state of everything for clients of the API.
    Inspector,
    /// Writes the events that the operator asked for.
    EventMonitor,
    /// Watches how long the end of a machine takes.
    ShutdownWatch,
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

impl ThreadKind {
    /// All of them.
    pub const ALL: &'static [ThreadKind] = &[
        ThreadKind::Control,
        ThreadKind::Api,
        ThreadKind::Inspector,
        ThreadKind::EventMonitor,
        ThreadKind::ShutdownWatch,
        ThreadKind::Vcpu,
        ThreadKind::SerialInput,
        ThreadKind::VirtioBlock,
        ThreadKind::VirtioRng,
        ThreadKind::VirtioNet,
        ThreadKind::VirtioConsole,
        ThreadKind::VirtioVsock,
        ThreadKind::VirtioBalloon,
        ThreadKind::VirtioWatchdog,
    ];

    /// Whether it starts before a VM is configured and uses no path at all.
    fn is_early(self) -> bool {
        matches!(
            self,
            ThreadKind::Inspector | ThreadKind::EventMonitor | ThreadKind::ShutdownWatch
        )
    }

    /// What an inspection calls it, and its filter.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ThreadKind::Control => "control",
            ThreadKind::Api => "api",
            ThreadKind::Inspector => "inspector",
            ThreadKind::EventMonitor => "event-monitor",
            ThreadKind::ShutdownWatch => "shutdown-watch",
            ThreadKind::Vcpu => "vcpu",
            ThreadKind::SerialInput => "serial-input",
            ThreadKind::VirtioBlock => "virtio-block",
            ThreadKind::VirtioRng => "virtio-rng",
            ThreadKind::VirtioNet => "virtio-net",
            ThreadKind::VirtioConsole => "virtio-console",
            ThreadKind::VirtioVsock => "virtio-vsock",
            ThreadKind::VirtioBalloon => "virtio-balloon",
            ThreadKind::VirtioWatchdog => "virtio-watchdog",
        }
    }
}

/// Enough for what the threads do. The default of 2 MiB is what the host makes
/// one huge page of, all of it, for a thread that touches a few kilobytes.
const STACK: usize = 512 << 10;

/// Bytes of a thread's name that the kernel keeps.
const THREAD_NAME: usize = 15;

/// What the kernel calls a thread: tools match such names against patterns, so
/// every character that is not of ASCII's letters, digits, `-`, `_` and `.`
/// becomes `_`.
fn thread_name(name: &str) -> String {
    name.chars()
        .take(THREAD_NAME)
        .map(|character| match character {
            '-' | '_' | '.' => character,
            _ if character.is_ascii_alphanumeric() => character,
            _ => '_',
        })
        .collect()
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
    let filter = Filter::of(kind)?;
    let builder = Builder::new().name(thread_name(name)).stack_size(STACK);
    builder.spawn(move || {
        log::debug!("thread {label} ({kind:?}) starts");
        let _enrolled = enrol_thread(&thread_name(&label), kind);
        if kind.is_early()
            && let Err(error) = confine_early(&[])
        {
            events.send(MachineEvent::Failed(format!("Thread {label}: {error}")));
            return;
        }
        if let Err(error) = filter.apply() {
            events.send(MachineEvent::Failed(format!("Thread {label}: {error}")));
            return;
        }
        if let Err(panic) = catch_panic(body) {
            events.send(MachineEvent::Failed(format!("Thread {label} {panic}")));
        }
    })
}

thread_local! {
    /// Where the thread panicked; `None` in threads whose panics nobody
    /// watches.
    static PANIC_PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps panics of watched threads from being printed where they happen: who
/// watches the thread reports them, once.
pub fn quiet_watched_panics() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let watched = PANIC_PLACE.with_borrow_mut(|place| {
            if let (Some(place), Some(location)) = (place.as_mut(), panic.location()) {
                *place = format!(" at {location}");
            }
            place.is_some()
        });
        if !watched {
            others(panic);
        }
    }));
}

/// A panic, and where it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("panicked{place}: {message}")]
pub struct Panicked {
    /// Empty, or ` at` and a place in the source.
    place: String,
    message: String,
}

/// Does the work of a thread, and tells of a panic in it.
///
/// # Errors
/// It panicked.
pub fn catch_panic<T>(body: impl FnOnce() -> T) -> Result<T, Panicked> {
    // It may be part of what is watched already.
    let outer = PANIC_PLACE.replace(Some(String::new()));
    let outcome = catch_unwind(AssertUnwindSafe(body));
    let place = PANIC_PLACE.replace(outer).unwrap_or_default();
    outcome.map_err(|panic| Panicked {
        place,
        message: panic_text(panic.as_ref()).to_owned(),
    })
}

/// From now on, every file and socket that the process makes is its user's
/// alone.
pub fn set_private_umask() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// Ends the process at once with status 1, after `message` if somebody reads it:
/// for a process whose other threads wait for something that does not come.
/// Takes no lock that one of them may hold.
pub fn end_process(message: &str) -> ! {
    let stderr = rustix::stdio::stderr();
    let mut waiting = [PollFd::from_borrowed_fd(stderr, PollFlags::OUT)];
    let timeout = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    if matches!(poll(&mut waiting, Some(&timeout)), Ok(1..)) {
        // Nobody is left to tell if that fails.
        let _ = rustix::io::write(stderr, message.as_bytes());
    }
    // SAFETY: ends the process without a look at its memory, so whatever other
    // threads are doing to it makes no difference.
    unsafe { libc::_exit(1) }
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

    #[test]
    fn threads_that_are_there_before_the_vm_reach_no_file() {
        for kind in [
            ThreadKind::Inspector,
            ThreadKind::EventMonitor,
            ThreadKind::ShutdownWatch,
        ] {
            let (sender, opened) = channel();
            let quiet = EventSink::new(|_| {});
            spawn("early", kind, quiet, move || {
                sender.send(std::fs::File::open("/proc/version")).unwrap();
            })
            .unwrap()
            .join()
            .unwrap();
            match opened.recv().unwrap() {
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
                Ok(_) => assert!(
                    std::thread::spawn(|| confine(&[])).join().unwrap().is_err(),
                    "the kernel has Landlock, and a thread of kind {kind:?} opens files"
                ),
            }
        }
    }

    #[test]
    fn a_thread_may_be_called_after_any_device() {
        for (id, name) in [
            ("_disk0_q0", "_disk0_q0"),
            ("my disk\0 \"ä\"\n", "my_disk__"),
            ("a-name.of_more_than_15", "a-name.of_more_"),
        ] {
            let (sender, found) = channel();
            let quiet = EventSink::new(|_| {});
            spawn(id, ThreadKind::Vcpu, quiet, move || {
                let name = std::thread::current().name().map(ToOwned::to_owned);
                sender.send(name).unwrap();
            })
            .unwrap()
            .join()
            .unwrap();
            let found = found.recv().unwrap().unwrap();
            assert!(found.starts_with(name), "{found}");
            assert!(found.len() <= 15 && found.is_ascii(), "{found}");
        }
    }
}
