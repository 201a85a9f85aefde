//! `ch-remote`: Cloud Hypervisor's command line to a running VMM, and the exit
//! statistics.

mod command;
mod exit_stats;
mod output;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::client::Client;
pub use exit_stats::ExitStatsArgs;
use output::Failure;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "ch-remote",
    version,
    about = "Controls a running virtual machine monitor over its API socket",
    arg_required_else_help = true,
    subcommand_required = true,
    propagate_version = false
)]
pub struct Cli {
    /// Unix socket of the API
    #[arg(long, value_name = "PATH", required = true)]
    pub api_socket: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands, in the order in which help lists them.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Boot a created VM
    Boot,
    /// Counters of the VM's devices
    Counters,
    /// Create a VM from a JSON configuration
    Create {
        /// File with the configuration, - for standard input
        #[arg(value_name = "PATH", default_value = "-")]
        path: String,
    },
    /// Delete a VM
    Delete,
    /// VM exits by reason, as the host's KVM counts them
    ExitStats(ExitStatsArgs),
    /// Configuration and state of the VM
    Info,
    /// Pause the VM
    Pause,
    /// Ask the VMM for its version
    Ping,
    /// Press the VM's power button
    PowerButton,
    /// Reboot the VM
    Reboot,
    /// Let a paused VM go on
    Resume,
    /// Shut the VM down
    Shutdown,
    /// Shut the VMM down
    ShutdownVmm,
}

/// Does what the process's arguments say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// The definition of the command line, for completions and manual pages.
pub fn definition() -> clap::Command {
    Cli::command()
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let client = Client::new(&cli.api_socket);
    match &cli.command {
        Command::ExitStats(args) => exit_stats::run(&client, args),
        command => command::run(&client, command),
    }
}

#[cfg(test)]
mod tests;
