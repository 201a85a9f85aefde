//! Whether a thread that is woken takes the CPU from the one that runs.

use std::io;

/// Whether the calling thread is scheduled as most are. Who started the process
/// may have wished for something else, which is to stay.
pub fn is_scheduled_normally() -> bool {
    // SAFETY: it has no pointers, and zero is the calling thread.
    unsafe { libc::sched_getscheduler(0) == libc::SCHED_OTHER }
}

/// From now on the calling thread takes the CPU when it is woken and has had
/// little of it, or waits until whoever has it stops or has had its share
/// (SCHED_BATCH, sched(7)). Nothing changes where a CPU is idle.
pub fn preempt_when_woken(eager: bool) -> io::Result<()> {
    let policy = match eager {
        true => libc::SCHED_OTHER,
        false => libc::SCHED_BATCH,
    };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to a live structure, which the call only reads, and
    // zero is the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_one_or_the_other_and_its_parent_stays_as_it_is() {
        let seen = std::thread::spawn(|| {
            let before = is_scheduled_normally();
            preempt_when_woken(false).unwrap();
            let patient = is_scheduled_normally();
            preempt_when_woken(true).unwrap();
            (before, patient, is_scheduled_normally())
        });
        assert_eq!(seen.join().unwrap(), (true, false, true));
        assert!(is_scheduled_normally());
    }
}
