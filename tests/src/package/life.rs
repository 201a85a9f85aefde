//! The life of the DKMS package: installed on a clean Debian, a kernel that
//! arrives, the modules in use on a booted host, removed.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Release;
use super::root::CleanRoot;
use crate::artifact::kernel::{Kernel, Series};
use crate::artifact::modules::KVM_MODULES;
use crate::command::{bound_command, command, output};
use crate::console::Console;
use crate::progress::seconds;
use crate::tree::Tree;

/// What a booted host does as its first program.
const HOST_SCRIPT: &str = include_str!("life-host.sh");

/// What a host says, in this order.
const HOST_SAYS: [&str; 6] = [
    "@life boot loads ours",
    "@life before installation stock is loaded",
    "@life while a VM runs swapping leaves stock, and says so",
    "@life swapping loads ours",
    "@life removal loads stock",
    "@life done",
];

/// How long the emulated host may take; systemd is not started.
const HOST_DEADLINE: Duration = Duration::from_secs(300);

/// One stage of the life, which builds on those before it.
type Stage = fn(&Life) -> Result<()>;

const BOOKWORM: [(&str, Stage); 7] = [
    (
        "installation_builds_for_the_kernel_that_is_there",
        Life::installation,
    ),
    (
        "source_older_than_the_kernel_is_refused",
        Life::older_source,
    ),
    ("kernel_that_arrives_gets_its_modules", Life::second_kernel),
    (
        "kernel_without_its_source_installs_all_the_same",
        Life::no_source,
    ),
    (
        "source_that_arrives_brings_the_modules",
        Life::source_arrives,
    ),
    (
        "modules_are_swapped_on_a_running_host",
        Life::on_a_running_host,
    ),
    ("removal_gives_the_stock_modules_back", Life::removal),
];

/// On Debian 13, whose backports bring a series of kernels that the release does not have.
const TRIXIE: [(&str, Stage); 3] = [
    (
        "installation_builds_for_the_kernel_that_is_there",
        Life::installation,
    ),
    (
        "kernel_of_the_backports_gets_its_modules",
        Life::backported_kernel,
    ),
    ("removal_gives_the_stock_modules_back", Life::removal),
];

struct Life {
    root: CleanRoot,
    package: PathBuf,
    kernel: Kernel,
    newer: Kernel,
    logs: PathBuf,
}

/// Lives it through on Debian 12 and 13, or on one of them.
pub fn test(tree: &Tree, package: &Path, release: Option<Release>) -> Result<()> {
    for candidate in Release::ALL {
        if release.is_some_and(|release| release != candidate) {
            continue;
        }
        let suite = candidate.as_str();
        let (kernel, newer, stages): (_, _, &[(&str, Stage)]) = match candidate {
            Release::Bookworm => (
                Kernel::fetch(tree, Series::V6_1)?,
                Kernel::fetch(tree, Series::V6_12)?,
                &BOOKWORM,
            ),
            Release::Trixie => (
                Kernel::of_suite(tree, suite)?,
                Kernel::fetch(tree, Series::V7_3)?,
                &TRIXIE,
            ),
        };
        let life = Life {
            root: CleanRoot::make(tree, suite, &kernel)?,
            package: package.to_owned(),
            kernel,
            newer,
            logs: tree.fresh_log_dir("package")?,
        };
        for (name, stage) in stages {
            let started = Instant::now();
            let outcome = stage(&life);
            let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
            println!(
                "test package_{suite}::{name} ... {verdict} ({})",
                seconds(started.elapsed())
            );
            outcome?;
        }
    }
    Ok(())
}

/// Whose modules modprobe loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Ours,
    Stock,
}

impl Life {
    fn installation(&self) -> Result<()> {
        self.expect(&self.kernel, Whose::Stock)?;
        let package = self.root.put(&self.package)?;
        self.install(&[&package])?;
        self.expect(&self.kernel, Whose::Ours)
    }

    fn older_source(&self) -> Result<()> {
        let release = &self.kernel.release;
        let said = self.root.run(&format!(
            "makefile=$(sed -n 's/^include //p' /lib/modules/{release}/build/Makefile)\n\
             cp $makefile /tmp/Makefile\n\
             sed -i 's/^SUBLEVEL = .*/SUBLEVEL = 9999/' $makefile\n\
             /usr/src/kvm-exit-stats-*/fits {release} || echo status $?\n\
             cp /tmp/Makefile $makefile\n\
             /usr/src/kvm-exit-stats-*/fits {release} && echo fits again"
        ))?;
        ensure!(
            said.contains("upgrade linux-source")
                && said.contains("status 1")
                && said.ends_with("fits again"),
            "It was not refused:\n{said}"
        );
        Ok(())
    }

    fn second_kernel(&self) -> Result<()> {
        self.install(&[
            &self.newer.image_package(),
            &self.newer.headers_package(),
            &self.newer.source_package(),
        ])?;
        self.expect(&self.newer, Whose::Ours)?;
        self.expect(&self.kernel, Whose::Ours)
    }

    fn backported_kernel(&self) -> Result<()> {
        let backports = format!("{}-backports", Release::Trixie.as_str());
        self.root.add_suite(&backports)?;
        self.install(&[
            "--target-release",
            &backports,
            &self.newer.image_package(),
            &self.newer.headers_package(),
            &self.newer.source_package(),
        ])?;
        self.expect(&self.newer, Whose::Ours)?;
        self.expect(&self.kernel, Whose::Ours)
    }

    fn no_source(&self) -> Result<()> {
        let (source, headers) = (self.newer.source_package(), self.newer.headers_package());
        let said = self.root.run(&format!(
            "apt-get remove -y -q {source}\n\
             dkms remove kvm-exit-stats/{} -k {}\n\
             apt-get install -y -q --reinstall {headers}",
            super::VERSION,
            self.newer.release
        ))?;
        ensure!(
            said.contains(&format!("install {source}")),
            "Nothing says that {source} is missing:\n{said}"
        );
        self.expect(&self.newer, Whose::Stock)?;
        self.expect(&self.kernel, Whose::Ours)
    }

    fn source_arrives(&self) -> Result<()> {
        self.install(&[&self.newer.source_package()])?;
        self.expect(&self.newer, Whose::Ours)?;
        self.expect(&self.kernel, Whose::Ours)
    }

    fn removal(&self) -> Result<()> {
        let said = self.root.run(
            "apt-get remove -y -q kvm-exit-stats-dkms\n\
             for hook in /etc/kernel/*/dkms-kvm-exit-stats; do $hook none; done\n\
             apt-get purge -y -q kvm-exit-stats-dkms\n\
             ls -d /etc/kernel/*/dkms-kvm-exit-stats /var/lib/dkms/kvm-exit-stats \
             /usr/src/kvm-exit-stats-* /usr/lib/kvm-exit-stats 2>/dev/null || true",
        )?;
        let last = said.lines().last().unwrap_or_default();
        ensure!(!last.starts_with('/'), "Something stays behind: {last}");
        self.expect(&self.kernel, Whose::Stock)?;
        self.expect(&self.newer, Whose::Stock)
    }

    /// Boots the root as it is on an emulated SVM host, with its own kernel.
    fn on_a_running_host(&self) -> Result<()> {
        let script = self.root.path().join("life-host");
        fs::write(&script, HOST_SCRIPT).context("Cannot write the host's script")?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
        let disk = self.logs.join("disk.img");
        let file = File::create(&disk).context("Cannot make the host's disk")?;
        file.set_len(4 << 30)?;
        output(
            command("mkfs.ext4", ["-q", "-O", "^has_journal", "-d"])
                .arg(self.root.path())
                .arg(&disk),
        )?;
        let outcome = self.boot(&disk);
        fs::remove_file(&disk)?;
        outcome
    }

    fn boot(&self, disk: &Path) -> Result<()> {
        let log = self.logs.join("console.log");
        let boot = self.root.path().join("boot");
        let release = &self.kernel.release;
        let mut host = bound_command("qemu-system-x86_64", ["-accel", "tcg,thread=single"])
            .args(["-cpu", "max,+svm", "-m", "1024", "-nodefaults"])
            .args(["-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(boot.join(format!("vmlinuz-{release}")))
            .arg("-initrd")
            .arg(boot.join(format!("initrd.img-{release}")))
            .args([
                "-append",
                "root=/dev/vda rw init=/life-host console=ttyS0 quiet panic=-1 mitigations=off",
            ])
            .args(["-serial", &format!("file:{}", log.display())])
            .args([
                "-drive",
                &format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("Cannot start qemu-system-x86_64")?;
        let mut console = Console::new(&log);
        let ended = console.wait_for(HOST_SAYS[HOST_SAYS.len() - 1], HOST_DEADLINE, || {
            matches!(host.try_wait(), Ok(None))
        });
        let _ = host.kill();
        let _ = host.wait();
        ended?;
        let text = console.text();
        let said: Vec<&str> = text
            .lines()
            .filter_map(|line| line.find("@life ").map(|at| line[at..].trim_end()))
            .collect();
        ensure!(
            said == HOST_SAYS,
            "The host says\n{}\nand not\n{}\n{}",
            said.join("\n"),
            HOST_SAYS.join("\n"),
            console.tail()
        );
        Ok(())
    }

    /// Keeps what apt-get said: an installation goes on when DKMS fails.
    fn install(&self, packages: &[&str]) -> Result<()> {
        let said = self.root.run(&format!(
            "apt-get install -y -q --no-install-recommends {}",
            packages.join(" ")
        ))?;
        fs::write(self.logs.join("install.log"), said).context("Cannot keep what apt-get said")
    }

    /// Looks where modprobe and modinfo find KVM's modules of a kernel, and
    /// that nothing but those could be loaded.
    fn expect(&self, kernel: &Kernel, whose: Whose) -> Result<()> {
        let release = &kernel.release;
        let folder = match whose {
            Whose::Ours => format!("/lib/modules/{release}/updates/dkms/"),
            Whose::Stock => format!("/lib/modules/{release}/kernel/arch/x86/kvm/"),
        };
        for module in KVM_MODULES {
            let found = self.root.run(&format!(
                "modinfo -k {release} -F filename {module}; modinfo -k {release} -F vermagic {module}"
            ))?;
            ensure!(
                found.trim_start_matches("/usr").starts_with(&folder)
                    && found.contains(&format!("\n{release} ")),
                "For {release}, {module} is not in {folder} but\n{found}"
            );
            let parameters = self
                .root
                .run(&format!("modinfo -k {release} -F parm {module}"))?;
            ensure!(
                module != "kvm" || parameters.contains("exit_stats:") == (whose == Whose::Ours),
                "{module} of {release} has the wrong parameters:\n{parameters}"
            );
            let loads = self
                .root
                .run(&format!("modprobe -S {release} -D {module}"))?;
            let others = loads
                .lines()
                .filter(|line| line.contains("/kvm") && !line.contains(&folder))
                .count();
            ensure!(
                others == 0,
                "modprobe {module} would load for {release}\n{loads}"
            );
        }
        Ok(())
    }
}
