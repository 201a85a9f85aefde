//! `cargo lab`: the one entry point for work on this repository.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::artifact::kernel::Series;
use lab::check;
use lab::host::Isa;
use lab::package::Release;
use lab::task::{self, BenchPeer, DebianOptions, GuestsOptions, TestOptions};
use lab::tree::Tree;

/// The command line.
#[derive(Parser)]
#[command(
    name = "cargo lab",
    bin_name = "cargo lab",
    about = "Builds emulated KVM hosts with real VMX and SVM and proves the system in them"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot Linux in our VMM on a KVM that counts exits, and show the counts
    Demo {
        #[command(flatten)]
        host: HostArgs,
    },
    /// Figures against peers and goals; fails where a goal is missed
    Bench {
        /// Only emulated hosts of this instruction set
        #[arg(long, value_parser = isa)]
        isa: Option<Isa>,
        /// Boot this program beside ours too: one with Cloud Hypervisor's command line
        #[arg(long, value_name = "NAME=PATH")]
        peer: Vec<BenchPeer>,
        /// Only this section, such as exits or boot
        section: Option<String>,
    },
    /// Build the guide as a book in target/book and look at every page in a browser
    Book,
    /// Build modules to target/lab/RELEASE and static programs to target/lab/bin
    Build {
        /// Kernel series of the modules
        #[arg(long, value_enum, default_value = "6.1")]
        kernel: Series,
    },
    /// Debian as a guest: disks, network, sockets, hotplug, many vCPUs
    Debian {
        /// With the amounts that take minutes
        #[arg(long)]
        long: bool,
        /// Take modules and programs as an earlier build left them
        #[arg(long)]
        as_built: bool,
        /// Only trials whose name contains this
        filter: Option<String>,
    },
    /// Memory tests, firmware and Debian's kernels as guests, reset in every way
    Guests {
        /// Every kernel flavour, every way, ten times each: hours
        #[arg(long)]
        long: bool,
        /// In a long run, each way so many times
        #[arg(long, requires = "long", value_name = "N")]
        resets: Option<u32>,
        /// Take modules and programs as an earlier build left them
        #[arg(long)]
        as_built: bool,
        /// Only trials whose name contains this
        filter: Option<String>,
    },
    /// Check everything that must hold
    Test {
        /// Only an SVM host: a few minutes
        #[arg(long)]
        quick: bool,
        /// Only emulated hosts of this instruction set
        #[arg(long, value_parser = isa)]
        isa: Option<Isa>,
        /// Only emulated hosts that run this kernel series
        #[arg(long, value_enum)]
        kernel: Option<Series>,
        /// The suites on this machine's own KVM, which must be ours
        #[arg(long, conflicts_with_all = ["quick", "isa", "kernel"])]
        bare: bool,
        /// Take modules and programs as an earlier build left them
        #[arg(long)]
        as_built: bool,
        /// Only trials of the suites whose name contains this, no other checks
        filter: Option<String>,
    },
    /// Make Debian packages in target/lab/packages
    Package {
        /// Also install, use and remove them on a clean Debian: ten minutes, root
        #[arg(long)]
        test: bool,
        /// Only on this release of Debian
        #[arg(long, value_enum, requires = "test")]
        release: Option<Release>,
        /// Only this package
        name: Option<String>,
    },
    /// The kernel's own tests of KVM, on stock modules and on ours: an hour or two
    Selftests {
        /// Only emulated hosts of this instruction set
        #[arg(long, value_parser = isa)]
        isa: Option<Isa>,
        /// Kernel series
        #[arg(long, value_enum, default_value = "6.1")]
        kernel: Series,
    },
    /// Pass the kernel side through the kernel's own gates: sparse, checkpatch, kernel-doc
    Gates,
    /// Apply the hooks to each kernel source of Debian's releases, build, and look at every
    /// return of both vcpu_run: half an hour
    Kernels {
        /// The patch series for mainline instead: build each patch, run the series' selftest
        #[arg(long, conflicts_with = "release")]
        upstream: bool,
        /// Instruction set of the host that runs the selftest
        #[arg(long, default_value = "svm", value_parser = isa, requires = "upstream")]
        isa: Isa,
        /// Only kernels whose release contains this, such as 6.12 or deb13
        release: Option<String>,
    },
    /// Poll the API with 64 clients on this machine; fails where they wait long
    Load {
        /// How long
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// Hold metrics, live view and report against Prometheus, a terminal and a browser
    Look,
    /// Play in an emulated host
    Shell {
        #[command(flatten)]
        host: HostArgs,
    },
    /// Record boots on emulated hosts and write docs/boot-exit-study.md
    Study {
        /// Only the hosts of this instruction set; the rest as it was last recorded
        #[arg(long, value_parser = isa)]
        isa: Option<Isa>,
    },
    /// Write the C header with the exit-reason tables
    Table {
        /// Only say whether it is current
        #[arg(long)]
        check: bool,
    },
}

#[derive(clap::Args)]
struct HostArgs {
    /// Instruction set of the host's CPU: vmx or svm
    #[arg(long, default_value = "vmx", value_parser = isa)]
    isa: Isa,
    /// Kernel series of host and guest
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: Series,
}

fn isa(text: &str) -> Result<Isa, String> {
    [Isa::Vmx, Isa::Svm]
        .into_iter()
        .find(|isa| isa.as_str() == text)
        .ok_or_else(|| "it is neither vmx nor svm".to_owned())
}

fn both_or(isa: Option<Isa>) -> Vec<Isa> {
    isa.map_or(vec![Isa::Svm, Isa::Vmx], |isa| vec![isa])
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let tree = Tree::discover()?;
    match command {
        Command::Demo { host } => task::demo(&tree, host.isa, host.kernel),
        Command::Bench { isa, peer, section } => task::bench(&tree, isa, section.as_deref(), &peer),
        Command::Book => task::book(&tree),
        Command::Build { kernel } => {
            let built = task::build(&tree, kernel)?;
            println!("modules:  {}", built.modules.display());
            println!("programs: {}", tree.bin().display());
            Ok(())
        }
        Command::Test {
            bare: true, filter, ..
        } => task::bare(&tree, filter.as_deref()),
        Command::Test {
            quick,
            isa,
            kernel,
            as_built,
            filter,
            ..
        } => task::test(
            &tree,
            &TestOptions {
                quick,
                filter,
                isa,
                series: kernel,
                as_built,
            },
        ),
        Command::Debian {
            long,
            as_built,
            filter,
        } => task::debian(
            &tree,
            &DebianOptions {
                filter,
                long,
                as_built,
            },
        ),
        Command::Guests {
            long,
            resets,
            as_built,
            filter,
        } => task::guests(
            &tree,
            &GuestsOptions {
                filter,
                long,
                resets,
                as_built,
            },
        ),
        Command::Package {
            test,
            release,
            name,
        } => task::package(&tree, name.as_deref(), test, release),
        Command::Gates => check::kernel_gates(&tree),
        Command::Kernels {
            upstream: true,
            isa,
            ..
        } => task::upstream(&tree, isa),
        Command::Kernels { release, .. } => task::kernels(&tree, release.as_deref()),
        Command::Load { seconds } => {
            let lasting = Duration::from_secs(seconds);
            // Both, whatever the first one says.
            let idle = task::load(&tree, lasting);
            task::load_busy(&tree, lasting).and(idle)
        }
        Command::Look => task::look(&tree),
        Command::Shell { host } => task::shell(&tree, host.isa, host.kernel),
        Command::Selftests { isa, kernel } => task::selftests(&tree, &both_or(isa), kernel),
        Command::Study { isa } => task::study(&tree, &both_or(isa), Series::V6_1),
        Command::Table { check: true } => check::table_is_current(&tree),
        Command::Table { check: false } => check::write_table(&tree),
    }
}
