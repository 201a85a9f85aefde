//! What looking at a running machine takes: which part of the tree is asked for,
//! a question to another thread, and the right to look.
//!
//! One thread looks at a time: the inspector's. It never waits for longer than
//! its [`Scope`] allows, and nobody waits for it but the control thread, which
//! closes the [`Gate`] before it takes something apart: a few milliseconds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use api_client::inspect::InspectNode;

/// How often a wait looks whether it is still wanted.
const SLICE: Duration = Duration::from_millis(5);

/// The part of a tree that is asked for, seen from one of its nodes, and the time
/// until which other threads may be waited for.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    rest: &'a [String],
    /// The path has led here, and not only to what this is a part of.
    named: bool,
    deadline: Instant,
}

impl<'a> Scope<'a> {
    /// What `path` asks for.
    #[must_use]
    pub fn new(path: &'a [String], deadline: Instant) -> Self {
        Self {
            rest: path,
            named: true,
            deadline,
        }
    }

    /// When to give up waiting.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The part called `name` as it is asked for, or nothing if it is not.
    #[must_use]
    pub fn part(&self, name: &str) -> Option<Scope<'a>> {
        match self.rest {
            [] => Some(Scope {
                named: false,
                ..*self
            }),
            [first, rest @ ..] if first == name => Some(Scope { rest, ..*self }),
            _ => None,
        }
    }

    /// Adds the part called `name` to `node`; `fill` reads it if it is asked for.
    pub fn add(
        &self,
        node: &mut InspectNode,
        name: &str,
        fill: impl FnOnce(&Scope<'a>, &mut InspectNode),
    ) {
        let part = node.children.entry(name.to_owned()).or_default();
        if let Some(scope) = self.part(name) {
            fill(&scope, part);
        }
    }

    /// The same for a part that is read only if the path leads to itself.
    pub fn add_on_request(
        &self,
        node: &mut InspectNode,
        name: &str,
        fill: impl FnOnce(&Scope<'a>, &mut InspectNode),
    ) {
        let part = node.children.entry(name.to_owned()).or_default();
        match self.part(name) {
            Some(scope) if scope.named => fill(&scope, part),
            _ => part.on_request = true,
        }
    }
}

/// A question to another thread. One thread asks, one answers; while an answer is
/// missing the question is not sent again.
#[derive(Debug)]
pub struct Question<T> {
    asked: AtomicBool,
    answer: Mutex<Option<T>>,
    answered: Condvar,
}

impl<T> Default for Question<T> {
    fn default() -> Self {
        Self {
            asked: AtomicBool::new(false),
            answer: Mutex::new(None),
            answered: Condvar::new(),
        }
    }
}

impl<T> Question<T> {
    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks. True if whoever answers has to be told of it, false if it has yet to
    /// answer the same question, which it was told of.
    #[must_use]
    pub fn ask(&self) -> bool {
        *self.lock() = None;
        !self.asked.swap(true, Ordering::SeqCst)
    }

    /// Whether an answer is wanted.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Answers, or takes the question back with nothing.
    pub fn answer(&self, answer: Option<T>) {
        let mut place = self.lock();
        *place = answer;
        self.asked.store(false, Ordering::SeqCst);
        drop(place);
        self.answered.notify_all();
    }

    /// Waits for the answer until `deadline`, or until `wanted` says no.
    pub fn wait(&self, deadline: Instant, wanted: impl Fn() -> bool) -> Option<T> {
        let mut answer = self.lock();
        loop {
            if !self.is_asked() {
                return answer.take();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !wanted() {
                return None;
            }
            let waited = self.answered.wait_timeout(answer, left.min(SLICE));
            answer = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The right to look at what a machine consists of. The inspector holds on to
/// devices only while it is inside, so once the control thread has closed the
/// gate, it is the last to do so.
#[derive(Debug, Default)]
pub struct Gate {
    closing: AtomicBool,
    /// Closed for good.
    retired: Mutex<bool>,
}

/// The inspector is inside.
#[derive(Debug)]
pub struct Inside<'a> {
    gate: &'a Gate,
    _lock: MutexGuard<'a, bool>,
}

impl Inside<'_> {
    /// Whether nobody waits for the inspector to leave.
    #[must_use]
    pub fn may_stay(&self) -> bool {
        !self.gate.closing.load(Ordering::SeqCst)
    }
}

impl Gate {
    /// Goes in, unless the gate is closed.
    #[must_use]
    pub fn enter(&self) -> Option<Inside<'_>> {
        if self.closing.load(Ordering::SeqCst) {
            return None;
        }
        let lock = match self.retired.try_lock() {
            Ok(lock) => lock,
            Err(TryLockError::Poisoned(lock)) => lock.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        (!*lock).then_some(Inside {
            gate: self,
            _lock: lock,
        })
    }

    /// Does something while nobody is inside.
    pub fn closed<T>(&self, work: impl FnOnce() -> T) -> T {
        let lock = self.close();
        let outcome = work();
        self.closing.store(*lock, Ordering::SeqCst);
        outcome
    }

    /// Closes the gate for good.
    pub fn retire(&self) {
        *self.close() = true;
    }

    fn close(&self) -> MutexGuard<'_, bool> {
        self.closing.store(true, Ordering::SeqCst);
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    fn path(text: &str) -> Vec<String> {
        text.split('/').map(ToOwned::to_owned).collect()
    }

    fn tree(path: &[String]) -> InspectNode {
        let scope = Scope::new(path, Instant::now());
        let mut root = InspectNode::default();
        for name in ["a", "b"] {
            scope.add(&mut root, name, |scope, node| {
                node.set("read", true);
                scope.add_on_request(node, "costly", |_, node| node.set("read", true));
            });
        }
        root
    }

    fn is_read(node: &InspectNode) -> bool {
        node.values.contains_key("read")
    }

    #[test]
    fn only_what_is_asked_for_is_read_and_all_is_named() {
        let all = tree(&[]);
        for part in all.children.values() {
            assert!(is_read(part));
            let costly = &part.children["costly"];
            assert!(costly.on_request && !is_read(costly));
        }
        let one = tree(&path("a"));
        assert!(is_read(&one.children["a"]) && !is_read(&one.children["b"]));
        assert!(one.children["a"].children["costly"].on_request);
        let costly = tree(&path("a/costly"));
        let costly = &costly.children["a"].children["costly"];
        assert!(is_read(costly) && !costly.on_request);
        let none = tree(&path("c"));
        assert_eq!(none.children.len(), 2);
        assert!(!none.children.values().any(is_read));
    }

    #[test]
    fn a_question_is_sent_once_and_waited_for_no_longer_than_allowed() {
        let question = Question::default();
        let soon = || Instant::now() + Duration::from_millis(20);
        assert!(question.ask());
        assert_eq!(question.wait(soon(), || true), None);
        // Still to be answered.
        assert!(!question.ask() && question.is_asked());
        assert_eq!(
            question.wait(soon() + Duration::from_secs(60), || false),
            None
        );
        question.answer(Some(1));
        assert_eq!(question.wait(soon(), || true), Some(1));
        assert!(question.ask());
        question.answer(None);
        assert_eq!(question.wait(soon(), || true), None);
        assert!(!question.is_asked());
    }

    #[test]
    fn an_answer_from_another_thread_ends_the_wait() {
        let question = Arc::new(Question::default());
        assert!(question.ask());
        let other = Arc::clone(&question);
        let thread = thread::spawn(move || other.answer(Some(7)));
        let late = Instant::now() + Duration::from_secs(60);
        assert_eq!(question.wait(late, || true), Some(7));
        thread.join().unwrap();
    }

    #[test]
    fn nobody_is_inside_while_the_gate_is_closed() {
        let gate = Arc::new(Gate::default());
        let inside = gate.enter().unwrap();
        let other = Arc::clone(&gate);
        let thread = thread::spawn(move || other.closed(Instant::now));
        while inside.may_stay() {
            thread::sleep(Duration::from_millis(1));
        }
        let left = Instant::now();
        drop(inside);
        assert!(thread.join().unwrap() >= left);
        assert!(gate.enter().is_some());
        gate.closed(|| assert!(gate.enter().is_none()));
        assert!(gate.enter().is_some());
        gate.retire();
        assert!(gate.enter().is_none());
        gate.closed(|| ());
        assert!(gate.enter().is_none());
    }
}
