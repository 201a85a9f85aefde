//! The kernel's log: did anything go wrong on the host?

use anyhow::Result;

use crate::command::{command, text};

/// What an emulated host writes to its log before it loads KVM: Linux 6.12 warns
/// of the CPU that Bochs emulates as soon as it starts.
const BEGIN: &str = "lab: loading KVM";

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
    let since = log.rfind(BEGIN).unwrap_or(0);
    log[since..]
        .lines()
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

    #[test]
    fn warning_from_before_kvm_was_loaded_is_not_kvms() {
        let log = "[0.0] WARNING: topology\n[1.0] lab: loading KVM\n[2.0] BUG: x\n";
        assert_eq!(suspicious(log), ["[2.0] BUG: x"]);
    }
}
