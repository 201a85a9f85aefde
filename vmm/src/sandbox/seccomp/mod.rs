//! Which system calls a thread may make: a filter per [`ThreadKind`], built by
//! the thread that starts the other, and the first thing that the other puts
//! on.
//!
//! A filter holds for all threads that its thread starts. The control thread
//! starts the machine's threads, so it may do whatever any of them may; the
//! others have lists of their own ([`rules`]).

mod rules;
#[cfg(test)]
mod tests;
mod violation;

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::ThreadKind;

/// What happens when a thread asks for more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnViolation {
    /// The process ends, with a message.
    End,
    /// The kernel's log tells of it, and the call is made.
    Log,
    /// The call fails.
    Refuse,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// It cannot be built.
    #[error("Cannot build the filter of system calls of {0:?} threads")]
    Build(ThreadKind, #[source] seccompiler::BackendError),
    /// The kernel does not take it.
    #[error("The kernel refuses a filter of system calls; --seccomp false does without")]
    Apply(#[source] seccompiler::Error),
    /// No handler for the signal.
    #[error("Cannot watch for forbidden system calls")]
    Handler(#[source] io::Error),
}

impl From<SeccompError> for io::Error {
    fn from(error: SeccompError) -> Self {
        io::Error::other(error)
    }
}

static MODE: OnceLock<OnViolation> = OnceLock::new();

/// From now on threads start with their filters. Without this call nothing is
/// filtered. The calling thread gets none; see [`Filter`].
pub fn enforce(mode: OnViolation) -> Result<(), SeccompError> {
    if mode == OnViolation::End {
        violation::install_handler().map_err(SeccompError::Handler)?;
    }
    // With more than one pool, the allocator opens a file of /proc before it
    // gives memory back, on whatever thread.
    // SAFETY: has no pointer. A refusal leaves the pools as they are.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        log::warn!("the allocator cannot be limited to one pool");
    }
    // The first word counts.
    MODE.get_or_init(|| mode);
    Ok(())
}

/// What happens to a call that a filter forbids; nothing if there are no filters.
#[must_use]
pub fn enforced() -> Option<OnViolation> {
    MODE.get().copied()
}

/// A filter that is ready to be put on; an empty one if nothing is filtered.
#[derive(Debug, Clone)]
pub struct Filter(Option<BpfProgram>);

impl Filter {
    /// The filter for threads of a kind.
    pub fn of(kind: ThreadKind) -> Result<Self, SeccompError> {
        match MODE.get() {
            None => Ok(Self(None)),
            Some(&mode) => build(kind, mode)
                .map(|program| Self(Some(program)))
                .map_err(|source| SeccompError::Build(kind, source)),
        }
    }

    /// Puts the filter on the calling thread, for good.
    pub fn apply(&self) -> Result<(), SeccompError> {
        match &self.0 {
            None => Ok(()),
            Some(program) => seccompiler::apply_filter(program).map_err(SeccompError::Apply),
        }
    }
}

fn build(kind: ThreadKind, mode: OnViolation) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for entry in rules::of(kind) {
        let rules = entry
            .conditions
            .iter()
            .map(|argument| {
                let length = SeccompCmpArgLen::Dword;
                let compare = SeccompCmpOp::MaskedEq(u64::from(argument.mask));
                let value = u64::from(argument.value);
                SeccompCondition::new(argument.argument, length, compare, value)
                    .and_then(|condition| SeccompRule::new(vec![condition]))
            })
            .collect::<Result<Vec<_>, _>>()?;
        match allowed.get_mut(&entry.number) {
            // No rule means any argument, which includes all others.
            Some(known) if known.is_empty() || rules.is_empty() => known.clear(),
            Some(known) => known.extend(rules),
            None => {
                allowed.insert(entry.number, rules);
            }
        }
    }
    let otherwise = match mode {
        OnViolation::End => SeccompAction::Trap,
        OnViolation::Log => SeccompAction::Log,
        OnViolation::Refuse => SeccompAction::Errno(libc::EPERM.unsigned_abs()),
    };
    SeccompFilter::new(allowed, otherwise, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}
