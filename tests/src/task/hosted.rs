//! Suites of trials that each have an emulated SVM host of their own.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Built;
use crate::host::{self, Isa, Job, Patience, Qemu};
use crate::tree::Tree;

/// A suite, as the names of its trials begin, and the host that it runs on.
pub type Suite = (&'static str, &'static Qemu);

/// What the suites' hosts have in common.
pub struct Hosted<'a> {
    /// The suites.
    pub suites: &'a [Suite],
    /// Shell that a host runs first.
    pub before: &'a str,
    /// Files that a host needs, by their path there.
    pub files: &'a [(String, PathBuf)],
    /// A host's disks.
    pub disks: &'a [PathBuf],
    /// How long one trial may take.
    pub patience: Duration,
    /// Take the time that large amounts take.
    pub long: bool,
    /// How often a long run takes each way to reset a machine, if not as usual.
    pub resets: Option<u32>,
}

impl Hosted<'_> {
    /// Runs the trials whose name contains this.
    pub fn run(
        &self,
        tree: &Tree,
        built: &Built,
        filter: &str,
        relay: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let image = built.patched_host(tree)?;
        let kernel = built.kernel.bzimage();
        let mut failed = Vec::new();
        for &(suite, host) in self.suites {
            let Some(filter) = part(filter, suite) else {
                continue;
            };
            let name = suite.trim_end_matches(':').replace('_', "-");
            let name = if self.long {
                format!("{name}-long")
            } else {
                name
            };
            let logs = tree.fresh_log_dir(&name)?;
            let script = format!(
                "{}exec lab-suites --isa {} --modules patched {} {} run '{}'\n",
                self.before,
                Isa::Svm.as_str(),
                if self.long { "--long" } else { "" },
                self.resets
                    .map(|resets| format!("--resets {resets}"))
                    .unwrap_or_default(),
                filter.replace('\'', "")
            );
            let job = Job {
                script: &script,
                files: self.files,
                patience: Patience::Silence(self.patience),
                disks: self.disks,
            };
            match host::run_job(host, &kernel, &image, &job, &logs, relay) {
                Ok(0) => {}
                Ok(_) => failed.push(format!("Trials failed; logs are in {}", logs.display())),
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
        ensure!(failed.is_empty(), "{}", failed.join("; "));
        Ok(())
    }
}

/// The part of a filter that is of a suite, if there is one.
fn part<'a>(filter: &'a str, suite: &'a str) -> Option<&'a str> {
    if suite.starts_with(filter) {
        return Some(suite);
    }
    (filter.starts_with(suite) || !filter.contains("::")).then_some(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_take_their_part_of_a_filter() {
        assert_eq!(part("guests", "guests::"), Some("guests::"));
        assert_eq!(part("guests", "guests_more::"), Some("guests_more::"));
        assert_eq!(part("guests::", "guests_more::"), None);
        assert_eq!(part("guests::one", "guests::"), Some("guests::one"));
        assert_eq!(part("one", "guests::"), Some("one"));
    }
}
