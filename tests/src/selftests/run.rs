//! Runs programs in fresh hosts, a few in each, and goes on after a hang.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Outcome;
use crate::artifact::kernel::Kernel;
use crate::artifact::selftests::Selftest;
use crate::host::{self, Isa, Job, Patience};

/// Programs for one host: all in one leave it in a state where later ones hang,
/// on stock modules too.
const GROUP: usize = 8;

/// What a program prints when it skips itself.
const SKIPPED: i32 = 4;

/// busybox's `timeout` ended it.
const KILLED: i32 = 128 + 9;

const START: &str = "@selftest start ";
const END: &str = "@selftest end ";

/// Too long under an emulator that runs some ten million instructions a second.
const LONG: &str = "too long for Bochs";

/// What is not started on a VMX host.
const OMITTED_ON_VMX: [(&str, &str); 13] = [
    ("access_tracking_perf_test", LONG),
    ("demand_paging_test", LONG),
    ("dirty_log_perf_test", LONG),
    ("dirty_log_test", LONG),
    ("hardware_disable_test", LONG),
    ("kvm_create_max_vcpus", LONG),
    ("kvm_page_table_test", LONG),
    ("max_guest_memory_test", LONG),
    ("memslot_modification_stress_test", LONG),
    ("memslot_perf_test", LONG),
    ("mmu_stress_test", LONG),
    ("rseq_test", LONG),
    (
        "set_memory_region_test",
        "hangs the host, with stock modules too",
    ),
];

/// Runs selftests on hosts of one kind.
pub struct Runner<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// The kernel of the hosts.
    pub kernel: &'a Kernel,
    /// Their root file system.
    pub image: &'a Path,
    /// Where their logs go.
    pub logs: &'a Path,
    /// How many times the usual limit a program may take.
    pub patience: u32,
}

impl Runner<'_> {
    /// Seconds of the host's clock that a program may take. Bochs's clock goes by
    /// instructions: two seconds of it are a minute or two of ours.
    fn limit(&self) -> u32 {
        match self.isa {
            Isa::Vmx => 2,
            Isa::Svm => 60,
        }
    }

    fn silence(&self) -> Duration {
        Duration::from_secs(match self.isa {
            Isa::Vmx => 600,
            Isa::Svm => 180,
        }) * self.patience
    }

    /// What became of each.
    pub fn run(
        &self,
        programs: &[Selftest],
        tell: &mut dyn FnMut(&str, &Outcome),
    ) -> Result<BTreeMap<String, Outcome>> {
        let mut outcomes = BTreeMap::new();
        let mut hosts = 0;
        let mut left: Vec<&Selftest> = Vec::new();
        for program in programs {
            match self.omitted(&program.name) {
                Some(why) => {
                    outcomes.insert(program.name.clone(), Outcome::Omitted(why.to_owned()));
                }
                None => left.push(program),
            }
        }
        while !left.is_empty() {
            let group = &left[..left.len().min(GROUP)];
            // A folder for each: a log of an earlier host must not be read as
            // this one's.
            hosts += 1;
            let logs = self.logs.join(hosts.to_string());
            fs::create_dir_all(&logs).with_context(|| format!("Cannot make {}", logs.display()))?;
            let found = self.host(group, &logs, tell)?;
            outcomes.extend(found);
            let before = left.len();
            left.retain(|program| !outcomes.contains_key(&program.name));
            // A host that does not even start the first program: count it as
            // hanging there, so that this ends.
            if left.len() == before {
                let first = left.remove(0);
                tell(&first.name, &Outcome::Hang);
                outcomes.insert(first.name.clone(), Outcome::Hang);
            }
        }
        Ok(outcomes)
    }

    fn omitted(&self, name: &str) -> Option<&'static str> {
        if self.isa != Isa::Vmx {
            return None;
        }
        OMITTED_ON_VMX
            .iter()
            .find(|(omitted, _)| *omitted == name)
            .map(|(_, why)| *why)
    }

    /// Boots a host for a group. A host that hangs leaves those after the hang
    /// without an outcome.
    fn host(
        &self,
        group: &[&Selftest],
        logs: &Path,
        tell: &mut dyn FnMut(&str, &Outcome),
    ) -> Result<BTreeMap<String, Outcome>> {
        let inside = |program: &Selftest| format!("/lab/selftests/{}", program.name);
        let files: Vec<(String, PathBuf)> = group
            .iter()
            .map(|program| (inside(program), program.path.clone()))
            .collect();
        let mut script = String::new();
        for program in group {
            script.push_str(&format!(
                "echo '{START}{0}'\n\
                 timeout -s KILL {1} {2} >/tmp/said 2>&1 </dev/null\n\
                 status=$?\n\
                 tail -n 4 /tmp/said\n\
                 echo \"{END}$status {0}\"\n",
                program.name,
                self.limit() * self.patience,
                inside(program)
            ));
        }
        let mut log = Log::default();
        let job = Job {
            script: &script,
            files: &files,
            patience: Patience::Silence(self.silence()),
            disks: &[],
        };
        let ended = host::run_job(
            host::emulated(self.isa),
            &self.kernel.bzimage(),
            self.image,
            &job,
            logs,
            &mut |line| log.line(line, tell),
        );
        match (ended, log.running) {
            (Ok(_), _) => {}
            (Err(_), Some(name)) => {
                tell(&name, &Outcome::Hang);
                log.outcomes.insert(name, Outcome::Hang);
            }
            // Between two programs or before the first: the caller decides.
            (Err(error), None) => eprintln!("lab: {error:#}"),
        }
        Ok(log.outcomes)
    }
}

/// Makes outcomes of what a host prints.
#[derive(Default)]
struct Log {
    outcomes: BTreeMap<String, Outcome>,
    running: Option<String>,
}

impl Log {
    fn line(&mut self, line: &str, tell: &mut dyn FnMut(&str, &Outcome)) {
        if let Some(name) = line.strip_prefix(START) {
            self.running = Some(name.to_owned());
        } else if let Some((status, name)) =
            line.strip_prefix(END).and_then(|rest| rest.split_once(' '))
        {
            let outcome = match status.parse() {
                Ok(0) => Outcome::Pass,
                Ok(SKIPPED) => Outcome::Skip,
                Ok(KILLED) => Outcome::Late,
                Ok(status) => Outcome::Fail(status),
                Err(_) => return,
            };
            tell(name, &outcome);
            self.outcomes.insert(name.to_owned(), outcome);
            self.running = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_host_become_outcomes_and_the_hanging_one_is_known() {
        let mut log = Log::default();
        for line in [
            "@selftest start a",
            "@selftest end 0 a",
            "@selftest start b",
            "1..0 # SKIP",
            "@selftest end 4 b",
            "@selftest start c",
            "@selftest end 137 c",
            "@selftest start d",
            "@selftest end 254 d",
            "@selftest start e",
        ] {
            log.line(line, &mut |_, _| {});
        }
        let of = |name: &str| log.outcomes[name].clone();
        assert_eq!(
            [of("a"), of("b"), of("c"), of("d")],
            [
                Outcome::Pass,
                Outcome::Skip,
                Outcome::Late,
                Outcome::Fail(254)
            ]
        );
        assert_eq!(log.running.as_deref(), Some("e"));
    }
}
