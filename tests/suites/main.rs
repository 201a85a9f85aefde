//! The suites: run on a KVM host, emulated or real, they start our VMM there
//! and hold it against the kernel's own oracles. `lab` packs this program into
//! every host that it boots and relays what it prints.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Parser, Subcommand};
use libtest_mimic::{Arguments, ColorSetting, Completion, Trial};

mod accounting;
mod any_vmm;
mod bench;
mod boot;
mod ch_remote;
mod clients;
mod consoles;
mod cpus;
mod debian;
mod demo;
mod descriptors;
mod devices;
mod emulation;
mod errors;
mod evidence;
mod guest;
mod guests;
mod host;
mod hostile;
mod hotplug;
mod hypervisor;
mod images;
mod inspect;
mod isolation;
mod keep_vm;
mod leaks;
mod leaves;
mod lifecycle;
mod live_view;
mod load;
mod many_exits;
mod memory;
mod modules;
mod nested;
mod nets;
mod no_io_uring;
mod pause;
mod pulse;
mod resets;
mod rest;
mod sandbox;
mod shell;
mod site;
mod snapshot;
mod sockets;
mod stock_kvm;
mod study;
mod time;
mod unrest;
mod views;
mod zeroes;

use site::{Site, SiteArgs, Skipped};

/// A trial: what it proves is its name.
type Check = fn(&Site) -> Result<()>;

/// Trials that belong together.
struct Suite {
    name: &'static str,
    /// On which modules it has something to say.
    applies: fn(&Site) -> bool,
    trials: &'static [(&'static str, Check)],
}

/// Names each trial after its function.
#[macro_export]
macro_rules! trials {
    ($($check:ident),+ $(,)?) => {
        &[$((stringify!($check), $check as $crate::Check)),+]
    };
}

const SUITES: &[Suite] = &[
    hypervisor::SUITE,
    boot::SUITE,
    boot::VARIANTS,
    leaves::SUITE,
    leaves::MANY_VCPUS,
    guest::SUITE,
    accounting::SUITE,
    many_exits::SUITE,
    many_exits::ALL_VCPUS,
    time::SUITE,
    time::SHARED_CPU,
    isolation::SUITE,
    isolation::MOVING,
    rest::SUITE,
    load::SUITE,
    ch_remote::SUITE,
    views::SUITE,
    live_view::SUITE,
    lifecycle::SUITE,
    lifecycle::REBOOTS,
    resets::SUITE,
    resets::LINUX,
    consoles::SUITE,
    descriptors::SUITE,
    clients::SUITE,
    devices::SUITE,
    images::SUITE,
    hotplug::SUITE,
    hostile::SUITE,
    cpus::SUITE,
    cpus::LINUX,
    memory::SUITE,
    nets::SUITE,
    inspect::SUITE,
    inspect::DEVICES,
    pause::SUITE,
    pulse::SUITE,
    pulse::LINUX,
    snapshot::SUITE,
    snapshot::LINUX,
    sandbox::SUITE,
    sandbox::STEPPED,
    errors::SUITE,
    stock_kvm::SUITE,
    any_vmm::SUITE,
    any_vmm::LINUX,
    nested::SUITE,
    nested::LINUX,
    modules::SUITE,
    emulation::SUITE,
    leaks::SUITE,
    guests::SUITE,
    guests::LONG,
    guests::FIRMWARE,
    debian::SUITE,
    debian::FIRMWARE,
    debian::MANY_VCPUS,
    // Last: it looks back on what all the others did to the host.
    host::SUITE,
];

#[derive(Parser)]
#[command(about = "Runs the suites on this KVM host")]
struct Args {
    #[command(flatten)]
    site: SiteArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the suites (the default).
    Run {
        /// Only trials whose name contains this.
        filter: Option<String>,
        /// List the trials instead.
        #[arg(long)]
        list: bool,
    },
    /// Boot a guest and show what can be read of its exits.
    Demo,
    /// Measure what sections of the bench ask for.
    Bench {
        /// Their names.
        sections: Vec<String>,
    },
    /// Record boots for the boot-exit study.
    Study {
        /// Names of the cases.
        cases: Vec<String>,
    },
    /// Hold a VM that never runs until killed.
    KeepVm,
    /// In a guest: have a disk write zeroes.
    WriteZeroes {
        /// The disk.
        disk: PathBuf,
        /// From this byte on.
        offset: u64,
        /// So many bytes.
        length: u64,
        /// The space may be given back.
        #[arg(long)]
        free: bool,
    },
    /// In a guest: connect to a port of the host, and hold the connections.
    HoldVsock {
        /// The port.
        port: u32,
        /// So many times.
        count: u32,
    },
    /// Become a program for which there is no io_uring.
    WithoutIoUring {
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let site = match Site::new(args.site) {
        Ok(site) => Arc::new(site),
        Err(error) => {
            eprintln!("lab-suites: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match args.command.unwrap_or(Command::Run {
        filter: None,
        list: false,
    }) {
        Command::Run { filter, list } => run(&site, filter, list),
        Command::Demo => report("The demonstration", demo::show(&site)),
        Command::Bench { sections } => report("The bench", bench::run(&site, &sections)),
        Command::Study { cases } => report("The study", study::run(&site, &cases)),
        Command::KeepVm => report("The kept VM", keep_vm::keep()),
        Command::WriteZeroes {
            disk,
            offset,
            length,
            free,
        } => report("The zeroes", zeroes::write(&disk, offset, length, free)),
        Command::HoldVsock { port, count } => report("The connections", sockets::hold(port, count)),
        Command::WithoutIoUring { command } => {
            report("The program", no_io_uring::become_it(&command))
        }
    }
}

fn report(what: &str, outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{what} failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(site: &Arc<Site>, filter: Option<String>, list: bool) -> ExitCode {
    // An emulated host is one of several, and the lab knows what they ran.
    let must_match = site.is_shared() && filter.is_some() && !list;
    let arguments = Arguments {
        // The trials share a tracepoint and a CPU: one after the other.
        test_threads: Some(1),
        filter,
        list,
        // What reads a serial line wants no colours.
        color: Some(ColorSetting::Never),
        ..Arguments::default()
    };
    let trials = SUITES
        .iter()
        .filter(|suite| (suite.applies)(site))
        .flat_map(|suite| {
            suite.trials.iter().map(|&(name, check)| {
                let site = Arc::clone(site);
                Trial::ignorable_test(format!("{}::{name}", suite.name), move || {
                    judge(&site, check(&site))
                })
            })
        })
        .collect();
    let ran = libtest_mimic::run(&arguments, trials);
    if must_match && ran.num_passed + ran.num_failed + ran.num_ignored == 0 {
        eprintln!(
            "No trial's name contains {:?}",
            arguments.filter.unwrap_or_default()
        );
        return ExitCode::FAILURE;
    }
    ran.exit_code()
}

/// A skip is an outcome with a reason, and no outcome at all where everything
/// is required.
fn judge(site: &Site, outcome: Result<()>) -> Result<Completion, libtest_mimic::Failed> {
    match outcome {
        Ok(()) => Ok(Completion::Completed),
        Err(error) => match error.downcast_ref::<Skipped>() {
            Some(skipped) if !site.all_required() => {
                Ok(Completion::ignored_with(skipped.to_string()))
            }
            Some(skipped) => Err(format!("skipped, but required here: {skipped}").into()),
            None => Err(format!("{error:#}").into()),
        },
    }
}
