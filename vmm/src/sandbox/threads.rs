//! The threads of this process as it knows them itself: who they are, and which
//! filter they have.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ThreadKind;

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadRecord {
    /// The kernel's number for it.
    pub id: u32,
    /// What the kernel calls it.
    pub name: String,
    /// What it does, which decides on its filter.
    pub kind: ThreadKind,
}

static THREADS: Mutex<BTreeMap<u32, ThreadRecord>> = Mutex::new(BTreeMap::new());

fn lock() -> MutexGuard<'static, BTreeMap<u32, ThreadRecord>> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calling thread's entry, for as long as the value lives.
#[derive(Debug)]
#[must_use]
pub struct EnrolledThread(u32);

/// Enters the calling thread.
pub fn enrol_thread(name: &str, kind: ThreadKind) -> EnrolledThread {
    let id = rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs();
    let record = ThreadRecord {
        id,
        name: name.to_owned(),
        kind,
    };
    lock().insert(id, record);
    EnrolledThread(id)
}

impl Drop for EnrolledThread {
    fn drop(&mut self) {
        lock().remove(&self.0);
    }
}

/// All threads that are entered, by number.
#[must_use]
pub fn threads() -> Vec<ThreadRecord> {
    lock().values().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_entered_as_long_as_it_lives() {
        let find = || {
            threads()
                .into_iter()
                .find(|thread| thread.name == "entered")
        };
        std::thread::spawn(move || {
            let entry = enrol_thread("entered", ThreadKind::VirtioRng);
            let found = find().unwrap();
            assert_eq!((found.id, found.kind), (entry.0, ThreadKind::VirtioRng));
            let path = format!("/proc/self/task/{}", found.id);
            assert!(std::path::Path::new(&path).exists());
        })
        .join()
        .unwrap();
        assert_eq!(find(), None);
    }
}
