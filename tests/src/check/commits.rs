//! A commit's subject says which area it touches.

use anyhow::{Result, ensure};

use crate::command::{command, text};
use crate::tree::Tree;

/// The areas.
const AREAS: [&str; 10] = [
    "kvm",
    "instrumentation",
    "hypervisor",
    "vmm",
    "api",
    "ch-remote",
    "lab",
    "docs",
    "ci",
    "workspace",
];

/// Longest subject; 72 is what every tool shows whole, and what to aim at.
const WIDTH: usize = 80;

/// Every subject in the history reads `area: Imperative summary`.
pub fn subjects_name_an_area(tree: &Tree) -> Result<()> {
    if !tree.root().join(".git").exists() {
        return Ok(());
    }
    let log =
        text(command("git", ["log", "--no-merges", "--format=%h %s"]).current_dir(tree.root()))?;
    let wrong: Vec<&str> = log
        .lines()
        .filter(|line| {
            line.split_once(' ')
                .is_none_or(|(_, subject)| !is_good(subject))
        })
        .collect();
    ensure!(
        wrong.is_empty(),
        "Subjects should read `area: Summary` in {WIDTH} characters, areas {AREAS:?}:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

fn is_good(subject: &str) -> bool {
    subject.len() <= WIDTH
        && subject.split_once(": ").is_some_and(|(area, summary)| {
            AREAS.contains(&area) && summary.starts_with(char::is_uppercase)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_needs_a_known_area_and_a_capital() {
        assert!(is_good("lab: Boot hosts"));
        assert!(!is_good("lab: boot hosts"));
        assert!(!is_good("tests: Boot hosts"));
        assert!(!is_good("Boot hosts"));
    }
}
