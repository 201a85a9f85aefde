//! The command line of the VMM: arguments to configuration, the API and the
//! machine started, and one clear line if anything fails.
#![forbid(unsafe_code)]

mod args;
#[cfg(test)]
mod clients;
mod logger;
#[cfg(test)]
mod reference;

use std::error::Error;
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use api_client::options::{ApiSocketArg, EventMonitorArg};
use clap::{CommandFactory, Parser};
use hypervisor::kvm::KvmHypervisor;
use signal_hook::consts::{SIGINT, SIGTERM, SIGWINCH};
use vmm::api::{
    ApiContext, ApiServer, ApiSocket, Descriptors, StatusBoard, VmmIdentity, api_channel, serve_on,
};
use vmm::host_file::{create_output_before_reader, set_blocking};
use vmm::sandbox::{self, Filter, ThreadKind};
use vmm::stats::StatsHub;
use vmm::vm::{Signals, Vmm};

use args::Args;

/// Exit status for arguments that there are none of, as clap's and Cloud
/// Hypervisor's.
const WRONG_ARGUMENTS: u8 = 2;

fn main() -> ExitCode {
    if std::env::args_os().len() == 1 {
        return match Args::command().print_help() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let wanted = !error.use_stderr();
            // Nobody is left to tell if that fails too.
            let _ = error.print();
            return if wanted {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(WRONG_ARGUMENTS)
            };
        }
    };
    if args.version {
        println!("{}", version());
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// The first line is the version by which clients choose features.
fn version() -> String {
    let VmmIdentity {
        build_version,
        version,
        ..
    } = VmmIdentity::default();
    format!("cloud-hypervisor v{version}\nbuild {build_version}")
}

/// All messages of an error on one line, outermost first. A message that its
/// wrapper shows unchanged appears once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut messages: Vec<String> = std::iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect();
    messages.dedup();
    messages.join(": ")
}

fn run(args: &Args) -> anyhow::Result<()> {
    // Before the configuration, which may have something to warn of.
    logger::start(args)?;
    let config = args.config()?;
    let restore = args.restore()?;

    let (signals, shutdown) = watch_signals().context("Cannot watch signals")?;
    vmm::vcpu::install_kick_handler()?;

    sandbox::set_private_umask();
    if let Err(error) = sandbox::raise_descriptor_limit() {
        log::warn!("the limit of descriptors stays as it is: {error}");
    }
    sandbox::quiet_watched_panics();
    sandbox::explain_faults().context("Cannot watch faults")?;
    if let Some(mode) = args.seccomp()? {
        sandbox::enforce(mode)?;
    }
    let hypervisor = Arc::new(KvmHypervisor::open()?);
    let stats = Arc::new(StatsHub::new());
    let mut vmm = Vmm::new(hypervisor, Arc::clone(&stats), args.no_shutdown)?;
    vmm.limit_shutdown(shutdown)?;
    if let Some(output) = events_output(args)? {
        vmm.monitor_events(output)?;
    }
    let (sender, requests) = api_channel().context("Cannot set up the API")?;
    let board = StatusBoard::default();
    let context = ApiContext {
        sender,
        board: board.clone(),
        stats,
        identity: VmmIdentity::default(),
    };
    let server = serve(args, context)?;
    let _enrolled = sandbox::enrol_thread("cloud-hypervisor", ThreadKind::Control);
    Filter::of(ThreadKind::Control)?.apply()?;
    if let Some(config) = config {
        vmm.create(Box::new(config))?;
        vmm.boot().context("Cannot boot the machine")?;
    }
    if let Some(restore) = restore {
        vmm.restore(&restore, Descriptors::default())
            .context("Cannot restore the machine")?;
    }
    let ended = vmm.run(&requests, &board, &signals)?;
    log::info!("ended: {ended:?}");
    if let Some(server) = server {
        server.stop()?;
    }
    Ok(())
}

/// The signals for the control thread, and those that end the process for the
/// thread that sees to it that it ends.
fn watch_signals() -> std::io::Result<(Signals, UnixStream)> {
    let (end, end_sender) = UnixStream::pair()?;
    let (shutdown, shutdown_sender) = UnixStream::pair()?;
    let (window, window_sender) = UnixStream::pair()?;
    window.set_nonblocking(true)?;
    for (signal, sender) in [
        (SIGTERM, end_sender.try_clone()?),
        (SIGINT, end_sender),
        (SIGTERM, shutdown_sender.try_clone()?),
        (SIGINT, shutdown_sender),
        (SIGWINCH, window_sender),
    ] {
        signal_hook::low_level::pipe::register(signal, sender)?;
    }
    Ok((Signals { end, window }, shutdown))
}

fn events_output(args: &Args) -> anyhow::Result<Option<File>> {
    let output = match args.event_monitor()? {
        None => return Ok(None),
        Some(EventMonitorArg::Path(path)) => create_output_before_reader(&path)
            .and_then(|output| {
                // A thread of its own writes, and may wait for a slow reader.
                set_blocking(&output)?;
                Ok(output)
            })
            .with_context(|| format!("Cannot write events to {}", path.display()))?,
        Some(EventMonitorArg::Fd(number)) => sandbox::inherited_descriptor(number)
            .with_context(|| format!("Cannot use descriptor {number} for events"))?
            .into(),
    };
    Ok(Some(output))
}

fn serve(args: &Args, context: ApiContext) -> anyhow::Result<Option<ApiServer>> {
    let api = match args.api_socket()? {
        None => None,
        Some(ApiSocketArg::Path(path)) => {
            Some(ApiSocket::bind(&path).context("Cannot start the API")?)
        }
        Some(ApiSocketArg::Fd(number)) => {
            let descriptor = sandbox::inherited_descriptor(number)
                .with_context(|| format!("Cannot use descriptor {number} as the API socket"))?;
            let socket = ApiSocket::from_listener(UnixListener::from(descriptor))
                .context("Cannot start the API")?;
            Some(socket)
        }
    };
    let statistics = args
        .stats_socket()?
        .map(|arg| ApiSocket::bind_for(&arg.path, arg.mode, arg.group.as_deref()))
        .transpose()
        .context("Cannot serve statistics")?;
    if api.is_none() && statistics.is_none() {
        return Ok(None);
    }
    let server = serve_on(api, statistics, context).context("Cannot start the API")?;
    Ok(Some(server))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error(transparent)]
        Same(#[from] Inner),
        #[error("outer")]
        Wrapped(#[source] Inner),
    }

    #[test]
    fn the_chain_is_one_line_without_repetition() {
        assert_eq!(chain(&Outer::Same(Inner)), "inner");
        assert_eq!(chain(&Outer::Wrapped(Inner)), "outer: inner");
    }

    #[test]
    fn the_version_is_one_that_clients_accept() {
        // As libvirt's driver reads it: from the first line, up to a dash.
        let text = version();
        let (first, second) = text.split_once('\n').unwrap();
        let numbers: Vec<u32> = first
            .strip_prefix("cloud-hypervisor v")
            .unwrap()
            .split('.')
            .map(|number| number.parse().unwrap())
            .collect();
        assert!(numbers.len() == 3 && numbers[0] >= 15, "{numbers:?}");
        assert_eq!(second, concat!("build v", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn a_fifo_for_events_may_get_its_reader_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::RWXU, 0).unwrap();
        let monitor = format!("path={}", path.display());
        let args = Args::try_parse_from(["x", "--event-monitor", &monitor]).unwrap();
        let mut output = events_output(&args).unwrap().unwrap();
        output.write_all(b"event").unwrap();
        let mut reader = File::open(&path).unwrap();
        let mut event = [0; 5];
        reader.read_exact(&mut event).unwrap();
        assert_eq!(&event, b"event");
    }
}
