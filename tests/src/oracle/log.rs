//! The kernel's log: did anything go wrong on the host?

use anyhow::Result;

use crate::command::{command, text};

/// What a kernel says when it is not well.
const SIGNS: [&str; 9] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "UBSAN:",
    "general protection",
    "Call Trace:",
    "soft lockup",
    "rcu_preempt detected stalls",
    "refcount_t:",
];

/// The lines of the log that tell of trouble.
pub fn warnings() -> Result<Vec<String>> {
    Ok(suspicious(&text(&mut command("dmesg", ["-s", "4000000"]))?))
}

fn suspicious(log: &str) -> Vec<String> {
    log.lines()
        .filter(|line| SIGNS.iter().any(|sign| line.contains(sign)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warning_is_told_from_a_usual_line() {
        let log = "[1.0] kvm: Nested Virtualization enabled\n[2.0] WARNING: CPU: 0 PID: 1 at x\n";
        assert_eq!(suspicious(log), ["[2.0] WARNING: CPU: 0 PID: 1 at x"]);
    }
}
