//! The patch series for mainline: each patch builds, and the modules that the whole makes
//! pass the series' own test on an emulated host.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::Built;
use crate::artifact::kernel::{Kernel, Series};
use crate::artifact::modules::KVM_MODULES;
use crate::artifact::packages::ensure_installed;
use crate::artifact::upstream::{self, TESTS, VARIANTS};
use crate::artifact::{binaries, guest_image};
use crate::bench::FIGURE;
use crate::bench::exits::TICKS;
use crate::host::{self, EmulatedHost, Isa, Job, Patience, Qemu};
use crate::tree::Tree;

/// Where the host finds what the series makes.
const INSIDE: &str = "/lab/upstream";

/// How the modules are loaded one after the other: a name, their folder, and the value of
/// the parameter that the last of them have.
const STATES: [(&str, &str, &str); 3] = [
    ("counting", VARIANTS[1], ""),
    ("counting, exit_cycles=N", VARIANTS[2], "N"),
    ("counting, exit_cycles=Y", VARIANTS[2], "Y"),
];

/// Lines of a state that say how something ended: the parameter, the tests, the log.
const ENDS: usize = 2 + TESTS.len();

/// What begins a line of the host's that says how a state or a test went.
const STATE: &str = "@upstream state ";
const ENDED: &str = "@upstream ended ";

/// Ticks that one exit may take more than before the series, by state.
const MOST: [f64; 3] = [9.0, 18.0, 33.0];

/// Checks, builds and runs the series.
pub fn upstream(tree: &Tree, isa: Isa) -> Result<()> {
    ensure_installed()?;
    let kernel = Kernel::fetch(tree, Series::V7_3)?;
    println!("== Linux {} ({}) ==", kernel.release, kernel.version);
    let folder = upstream::build(tree, &kernel)?;
    println!("each patch applies, satisfies checkpatch --strict and builds");
    binaries::build(tree)?;
    let built = Built {
        guest: guest_image::build(tree)?,
        modules: folder.clone(),
        kernel,
    };
    let said = run(tree, &built, &folder, isa)?;
    print!("{}", said.table()?);
    ensure!(said.failed.is_empty(), "{}", said.failed.join("\n"));
    Ok(())
}

fn run(tree: &Tree, built: &Built, folder: &Path, isa: Isa) -> Result<Said> {
    let (vendor, host): (_, &dyn EmulatedHost) = match isa {
        Isa::Vmx => ("kvm-intel", host::emulated(isa)),
        Isa::Svm => ("kvm-amd", &Qemu::COUNTED),
    };
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    for variant in VARIANTS {
        for module in KVM_MODULES {
            let file = format!("{variant}/{module}.ko");
            files.push((format!("{INSIDE}/{file}"), folder.join(&file)));
        }
    }
    for test in names() {
        files.push((format!("{INSIDE}/{test}"), folder.join(test)));
    }
    let mut script = format!(
        "load() {{\n\
             rmmod {module}; rmmod kvm\n\
             insmod {INSIDE}/$1/kvm.ko $2 && insmod {INSIDE}/$1/{vendor}.ko || exit 1\n\
         }}\n\
         measure() {{ lab-suites --isa {isa} --modules stock bench exits; }}\n\
         echo '{STATE}as it was'; load {before}; measure\n",
        module = vendor.replace('-', "_"),
        isa = isa.as_str(),
        before = VARIANTS[0],
    );
    for (state, variant, value) in STATES {
        let parameter = match value {
            "" => String::new(),
            value => format!("exit_cycles={value}"),
        };
        let _ = write!(
            script,
            "echo '{STATE}{state}'; dmesg -c >/tmp/log; load {variant} {parameter}\n\
             [ \"$(cat /sys/module/kvm/parameters/exit_cycles 2>/tmp/said)\" = '{value}' ]\n\
             echo \"{ENDED}$? parameter\"\n\
             for test in {}; do\n\
                 {INSIDE}/$test >/tmp/said 2>&1 </dev/null\n\
                 status=$?; [ $status = 0 ] || tail -n 8 /tmp/said\n\
                 echo \"{ENDED}$status $test\"\n\
             done\n\
             measure\n\
             dmesg >/tmp/log; grep -E -A 20 'WARNING|BUG|Oops' /tmp/log\n\
             echo \"{ENDED}$((1 - $?)) kernel's log without a warning\"\n",
            names().join(" "),
        );
    }
    let logs = tree.fresh_log_dir(&format!("upstream-{}", isa.as_str()))?;
    let job = Job {
        script: &script,
        files: &files,
        patience: Patience::Whole(host.deadline()),
        disks: &[],
    };
    let image = built.stock_host(tree)?;
    let mut said = Said::default();
    let status = host::run_job(
        host,
        &built.kernel.bzimage(),
        &image,
        &job,
        &logs,
        &mut |line| said.line(line),
    )?;
    if status != 0 || said.ended != STATES.len() * ENDS {
        bail!("Not all was run; logs are in {}", logs.display());
    }
    Ok(said)
}

fn names() -> [&'static str; 2] {
    TESTS.map(|test| test.rsplit('/').next().unwrap_or(test))
}

/// What the host says.
#[derive(Default)]
struct Said {
    state: String,
    ticks: Vec<(String, f64)>,
    ended: usize,
    failed: Vec<String>,
}

impl Said {
    fn line(&mut self, line: &str) {
        if let Some(state) = line.strip_prefix(STATE) {
            state.clone_into(&mut self.state);
        } else if let Some((status, what)) = line
            .strip_prefix(ENDED)
            .and_then(|rest| rest.split_once(' '))
        {
            let outcome = if status == "0" { "ok" } else { "FAILED" };
            println!("{}: {what} ... {outcome}", self.state);
            self.ended += 1;
            if status != "0" {
                self.failed
                    .push(format!("{}: {what} ended with {status}", self.state));
            }
        } else if let Some(figure) = line.strip_prefix(FIGURE) {
            if let Some(("", ticks)) = figure
                .strip_prefix(TICKS)
                .and_then(|rest| rest.split_once(' '))
                && let Ok(ticks) = ticks.parse()
            {
                self.ticks.push((self.state.clone(), ticks));
            }
        } else {
            println!("{line}");
        }
    }

    /// The cost of an exit in each state; one that costs too much fails.
    fn table(&self) -> Result<String> {
        let [(_, before), states @ ..] = self.ticks.as_slice() else {
            bail!("The host measured nothing");
        };
        ensure!(states.len() == STATES.len(), "Not every state was measured");
        let mut table = format!("one CPUID exit, in ticks: {before:.0} before the series\n");
        for ((state, ticks), most) in states.iter().zip(MOST) {
            let more = ticks - before;
            let _ = writeln!(table, "  {state}: {more:+.1}, {most:+.0} at most");
            ensure!(more <= most, "An exit costs {more:.1} ticks more: {state}");
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[&str]) -> Said {
        let mut said = Said::default();
        for line in lines {
            said.line(line);
        }
        said
    }

    #[test]
    fn only_the_ticks_of_an_exit_are_taken_and_held_against_those_before() {
        let mut lines = vec![
            "@upstream state as it was",
            "@figure ticks 100",
            "@figure ticks_off 1",
        ];
        for _ in STATES {
            lines.extend(["@upstream state some", "@figure ticks 109"]);
        }
        assert!(
            said(&lines)
                .table()
                .unwrap()
                .contains("some: +9.0, +9 at most")
        );
        lines.extend(["@upstream state one more", "@figure ticks 100"]);
        assert!(said(&lines).table().is_err());
        lines.truncate(3);
        assert!(said(&lines).table().is_err());
        for _ in STATES {
            lines.extend(["@upstream state dear", "@figure ticks 110"]);
        }
        assert!(said(&lines).table().is_err());
    }

    #[test]
    fn test_that_does_not_end_well_fails_even_if_it_skips_itself() {
        let said = said(&[
            "@upstream state s",
            "@upstream ended 4 t",
            "@upstream ended 0 u",
        ]);
        assert_eq!(
            (said.ended, said.failed),
            (2, vec!["s: t ended with 4".to_owned()])
        );
    }
}
