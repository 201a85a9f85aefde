//! Whether a disk's thread takes the CPU from a vCPU as soon as it is kicked.
//!
//! It matters where both share a CPU. Taking it at once serves the first request
//! before the guest comes to its second: a kick and an interrupt each. Leaving it
//! lets the guest ask for all that it wants with one kick; but a guest that wants
//! no more then halts, which is one exit more than its kick. Which of the two a
//! guest is shows in how many requests there are at a kick, as long as the thread
//! leaves it the CPU; so from time to time it does.

use crate::sandbox::{is_scheduled_normally, preempt_when_woken};

/// Kicks in a row with a single request after which the CPU is taken at once.
const SINGLE_KICKS: u16 = 8;
/// Kicks after which it is tried again whether the guest has more to ask.
const RETRY_AFTER: u16 = 256;
/// Kicks that such a try takes.
const PROBE: u16 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The CPU is left to the guest; so many kicks in a row had one request.
    Deferred(u16),
    /// It is taken; so many kicks ago this began.
    Preempting(u16),
    /// Somebody else has decided.
    Fixed,
}

impl Mode {
    /// What comes after a kick with so many requests.
    fn after(self, requests: u16) -> Self {
        match (self, requests) {
            (Mode::Deferred(alone), 1) if alone + 1 < SINGLE_KICKS => Mode::Deferred(alone + 1),
            (Mode::Deferred(_), 1) => Mode::Preempting(0),
            (Mode::Deferred(_), 2..) => Mode::Deferred(0),
            (Mode::Preempting(since), _) if since + 1 < RETRY_AFTER => Mode::Preempting(since + 1),
            (Mode::Preempting(_), _) => Mode::Deferred(SINGLE_KICKS - PROBE),
            (same, _) => same,
        }
    }
}

/// The calling thread's way of being woken.
#[derive(Debug)]
pub(super) struct Wakeups(Mode);

impl Wakeups {
    /// Begins by leaving the CPU to the guest.
    pub(super) fn new() -> Self {
        let mut wakeups = Wakeups(Mode::Fixed);
        if is_scheduled_normally() {
            wakeups.enter(Mode::Deferred(0));
        }
        wakeups
    }

    /// There were so many requests when the thread came to look.
    pub(super) fn served(&mut self, requests: u16) {
        let next = self.0.after(requests);
        if matches!(next, Mode::Preempting(_)) == matches!(self.0, Mode::Preempting(_)) {
            self.0 = next;
        } else {
            self.enter(next);
        }
    }

    fn enter(&mut self, mode: Mode) {
        self.0 = match preempt_when_woken(matches!(mode, Mode::Preempting(_))) {
            Ok(()) => mode,
            Err(error) => {
                log::info!("a disk's thread stays scheduled as it is: {error}");
                Mode::Fixed
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(mode: Mode, requests: &[u16]) -> Mode {
        requests.iter().fold(mode, |mode, &count| mode.after(count))
    }

    #[test]
    fn a_guest_with_one_request_at_a_time_is_served_at_once() {
        assert_eq!(after(Mode::Deferred(0), &[1; 7]), Mode::Deferred(7));
        assert_eq!(after(Mode::Deferred(0), &[1; 8]), Mode::Preempting(0));
    }

    #[test]
    fn one_with_many_is_left_the_cpu() {
        assert_eq!(
            after(Mode::Deferred(0), &[16, 1, 1, 0, 5, 1]),
            Mode::Deferred(1)
        );
    }

    #[test]
    fn whether_it_has_many_by_now_is_tried_again() {
        let tried = after(Mode::Preempting(0), &[1; 256]);
        assert_eq!(tried, Mode::Deferred(6));
        assert_eq!(after(tried, &[1, 1]), Mode::Preempting(0));
        assert_eq!(after(tried, &[1, 2]), Mode::Deferred(0));
    }

    #[test]
    fn what_others_decided_stays() {
        assert_eq!(after(Mode::Fixed, &[1; 1000]), Mode::Fixed);
    }
}
