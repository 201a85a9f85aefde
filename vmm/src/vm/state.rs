//! The states of a machine and which of them may follow which.
//!
//! ```text
//!            boot              pause
//!  Created ───────► Running ◄────────► Paused
//!     ▲                │       resume     │
//!     │                ▼                  │
//!     └─────────── Shutdown ◄─────────────┘
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
#[error("A machine that is {} cannot become {}", .from.name(), .to.name())]
pub struct TransitionError {
    /// The state as it is.
    pub from: VmState,
    /// The state asked for.
    pub to: VmState,
}

impl VmState {
    /// The transition table.
    #[must_use]
    pub const fn may_become(self, next: VmState) -> bool {
        use VmState::{Created, Paused, Running, Shutdown};
        matches!(
            (self, next),
            (Created, Running)
                | (Running, Paused)
                | (Paused, Running)
                | (Running | Paused, Shutdown)
                | (Shutdown, Created)
        )
    }

    /// Makes a change, or says why not.
    pub fn change(&mut self, next: VmState) -> Result<(), TransitionError> {
        if !self.may_become(next) {
            return Err(TransitionError {
                from: *self,
                to: next,
            });
        }
        *self = next;
        Ok(())
    }

    fn name(self) -> &'static str {
        match self {
            VmState::Created => "created",
            VmState::Running => "running",
            VmState::Paused => "paused",
            VmState::Shutdown => "shut down",
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
    fn a_refused_change_names_both_states() {
        let error = VmState::Created.change(VmState::Paused).unwrap_err();
        assert_eq!(
            error.to_string(),
            "A machine that is created cannot become paused"
        );
    }
}
