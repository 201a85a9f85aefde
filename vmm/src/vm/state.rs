//! The states of a machine and which of them may follow which.
//!
//! ```text
//!            boot              pause
//!  Created ───────► Running ◄────────► Paused
//!   │ ▲                │       resume   │ ▲
//!   │ │                ▼                │ │
//!   │ └─────────── Shutdown ◄───────────┘ │
//!   └─────────────────────────────────────┘
//!                   restore
//! ```
//! The control thread owns every change. `Shutdown` lasts as long as threads
//! and memory are being taken down; what is left then is a configuration that
//! can be booted again.

use api_client::types::VmState as WireState;

/// State of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    /// Configured, not running.
    Created,
    /// vCPUs run.
    Running,
    /// vCPUs stand still.
    Paused,
    /// Being taken down.
    Shutdown,
}

/// A change that the table does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The VM is {}", .0.name())]
pub struct TransitionError(
    /// The state as it is.
    pub VmState,
);

impl VmState {
    /// The transition table.
    #[must_use]
    pub const fn may_become(self, next: VmState) -> bool {
        use VmState::{Created, Paused, Running, Shutdown};
        matches!(
            (self, next),
            (Created, Running)
                | (Running, Paused)
                | (Created, Paused)
                | (Paused, Running)
                | (Running | Paused, Shutdown)
                | (Shutdown, Created)
        )
    }

    /// Makes a change, or says why not.
    pub fn change(&mut self, next: VmState) -> Result<(), TransitionError> {
        if !self.may_become(next) {
            return Err(TransitionError(*self));
        }
        *self = next;
        Ok(())
    }

    fn name(self) -> &'static str {
        match self {
            VmState::Created | VmState::Shutdown => "not running",
            VmState::Running => "already running",
            VmState::Paused => "already paused",
        }
    }
}

impl From<VmState> for WireState {
    fn from(state: VmState) -> Self {
        match state {
            VmState::Created => WireState::Created,
            VmState::Running => WireState::Running,
            VmState::Paused => WireState::Paused,
            VmState::Shutdown => WireState::Shutdown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_drawn_changes_are_possible() {
        use VmState::{Created, Paused, Running, Shutdown};
        let drawn = [
            (Created, Running),
            (Created, Paused),
            (Running, Paused),
            (Paused, Running),
            (Running, Shutdown),
            (Paused, Shutdown),
            (Shutdown, Created),
        ];
        for from in [Created, Running, Paused, Shutdown] {
            for to in [Created, Running, Paused, Shutdown] {
                let mut state = from;
                let allowed = drawn.contains(&(from, to));
                assert_eq!(state.change(to).is_ok(), allowed, "{from:?} to {to:?}");
                assert_eq!(state, if allowed { to } else { from });
            }
        }
    }

    #[test]
    fn a_refused_change_names_the_state() {
        for (mut state, next, expected) in [
            (VmState::Created, VmState::Shutdown, "The VM is not running"),
            (VmState::Paused, VmState::Paused, "The VM is already paused"),
            (
                VmState::Running,
                VmState::Running,
                "The VM is already running",
            ),
        ] {
            assert_eq!(state.change(next).unwrap_err().to_string(), expected);
        }
    }
}
