//! `ch-remote`: Cloud Hypervisor's command line to a running VMM, and the exit
//! statistics.

mod command;
mod exit_stats;
mod exporter;
mod inspect;
mod output;
mod recording;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};

use crate::UNSUPPORTED;
use crate::client::Client;
pub use exit_stats::ExitStatsArgs;
pub use exporter::ExporterArgs;
pub use inspect::{InspectArgs, TreeFormat};
use output::Failure;
pub use recording::RecordingCommand;

/// [`API_VERSION`](crate::API_VERSION), and what this program is itself.
const VERSION: &str = concat!("v54.0.0\nbuild v", env!("CARGO_PKG_VERSION"));

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "ch-remote",
    version = VERSION,
    about = "Controls a running virtual machine monitor over its API socket",
    arg_required_else_help = true,
    subcommand_required = true,
    propagate_version = false
)]
pub struct Cli {
    /// Unix socket of the API
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    /// Seconds that an answer may take: else 10 for what reads and 600 for what acts,
    /// as long as the VMM answers at all
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    pub timeout: Option<Duration>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands, in the order in which help lists them.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Add a disk to the VM
    AddDisk {
        /// The disk, as after --disk of the VMM
        #[arg(value_name = "path=PATH,...")]
        disk: String,
    },
    /// Add a network device to the VM
    AddNet {
        /// The network device, as after --net of the VMM
        #[arg(value_name = "tap=TAP,...")]
        net: String,
    },
    /// Add a socket device to the VM
    AddVsock {
        /// The socket device, as after --vsock of the VMM
        #[arg(value_name = "cid=CID,socket=PATH,...")]
        vsock: String,
    },
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
    /// Serve the exits of all of a host's VMs to Prometheus
    Exporter(ExporterArgs),
    /// Configuration and state of the VM
    Info,
    /// Live state of the VM and its parts: queues, registers, threads, descriptors
    Inspect(InspectArgs),
    /// Interrupt the VM's vCPUs with an NMI
    Nmi,
    /// Pause the VM
    Pause,
    /// Ask the VMM for its version
    Ping,
    /// Press the VM's power button
    PowerButton,
    /// Reboot the VM
    Reboot,
    /// Remove a device from the VM
    RemoveDevice {
        /// Identifier of the device
        id: String,
    },
    /// Change the size of a VM
    Resize {
        /// vCPUs
        #[arg(long, value_name = "NUMBER")]
        cpus: Option<u32>,
        /// Memory
        #[arg(long, value_name = "SIZE")]
        memory: Option<String>,
        /// Memory that the balloon takes
        #[arg(long, value_name = "SIZE")]
        balloon: Option<String>,
    },
    /// Change the size of a disk of the running VM
    ResizeDisk {
        /// Identifier of the disk
        #[arg(long, value_name = "ID")]
        disk: String,
        /// Its new size
        #[arg(long, value_name = "SIZE")]
        size: String,
    },
    /// Change the size of a memory zone
    ResizeZone {
        /// Identifier of the zone
        #[arg(long, value_name = "ID")]
        id: String,
        /// Its new size
        #[arg(long, value_name = "SIZE")]
        size: String,
    },
    /// Restore a VM from a snapshot
    Restore {
        /// source_url=file://<directory>,prefault=on|off,memory_restore_mode=copy|ondemand,
        /// net_fds=[<id>@[<fd>,..]],resume=true|false
        #[arg(value_name = "SNAPSHOT")]
        restore: String,
    },
    /// Resume a paused VM
    Resume,
    /// Shut the VM down
    Shutdown,
    /// Shut the VMM down
    ShutdownVmm,
    /// Take a snapshot of a paused VM
    Snapshot {
        /// Directory to write to, as file://<directory>
        destination_url: String,
    },
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.001..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected seconds from 0.001 to 86400".to_owned())
}

/// Does what the process's arguments say.
pub fn main() -> ExitCode {
    let outcome = match Cli::try_parse() {
        Ok(cli) => run(&cli),
        Err(error) => Err(unsupported(&error).unwrap_or_else(|| error.exit())),
    };
    match outcome {
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

/// What is wrong with a command line that names a request of Cloud Hypervisor's
/// which is not here; nothing for other errors.
fn unsupported(error: &clap::Error) -> Option<Failure> {
    let ContextValue::String(name) = error.get(ContextKind::InvalidSubcommand)? else {
        return None;
    };
    UNSUPPORTED
        .contains(&name.as_str())
        .then(|| Failure::Line(format!("{name} is not supported by this VMM")))
}

fn run(cli: &Cli) -> Result<(), Failure> {
    // What needs no VMM needs no socket.
    match &cli.command {
        Command::Exporter(args) => return exporter::run(args),
        Command::ExitStats(ExitStatsArgs {
            recording: Some(RecordingCommand::Report(args)),
            ..
        }) => return recording::report(args),
        _ => {}
    }
    let Some(path) = &cli.api_socket else {
        definition()
            .error(
                ErrorKind::MissingRequiredArgument,
                "the argument --api-socket <PATH> is required",
            )
            .exit();
    };
    let mut client = Client::new(path);
    if let Some(timeout) = cli.timeout {
        client = client.with_timeout(timeout);
    }
    match &cli.command {
        Command::ExitStats(args) => match &args.recording {
            Some(RecordingCommand::Record(args)) => recording::record(&client, args),
            _ => exit_stats::run(&client, args),
        },
        Command::Inspect(args) => inspect::run(&client, args),
        command => command::run(&client, command),
    }
}

#[cfg(test)]
mod tests;
