//! The API and the control thread as the VMM has them, on a host without a
//! hypervisor: everything works but the boot. For programs that try every
//! request there is, on machines without KVM too.
//!
//!     api_without_kvm --api-socket SOCKET

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use hypervisor::x86::CpuidEntry;
use hypervisor::{Error, ExitStatsSupport, Hypervisor, Vm};
use instrumentation::table::Isa;
use signal_hook::consts::SIGTERM;
use vmm::api::{ApiContext, StatusBoard, VmmIdentity, api_channel, start_server};
use vmm::stats::StatsHub;
use vmm::vm::{Signals, Vmm};

struct Nothing;

impl Hypervisor for Nothing {
    fn create_vm(&self) -> hypervisor::Result<Arc<dyn Vm>> {
        Err(Error::MissingCapability("everything"))
    }

    fn supported_cpuid(&self) -> hypervisor::Result<Vec<CpuidEntry>> {
        Ok(Vec::new())
    }

    fn has_tsc_deadline_timer(&self) -> bool {
        false
    }

    fn max_vcpus(&self) -> usize {
        64
    }

    fn exit_stats_support(&self) -> ExitStatsSupport {
        ExitStatsSupport::from_raw(0)
    }

    fn isa(&self) -> Option<Isa> {
        None
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [flag, socket] = &args[..] else {
        bail!("Usage: api_without_kvm --api-socket SOCKET");
    };
    if flag != "--api-socket" {
        bail!("There is no option {flag}");
    }
    let (end, sender) = UnixStream::pair().context("Cannot watch signals")?;
    // No terminal, so nobody ever tells of its size.
    let (window, _quiet) = UnixStream::pair().context("Cannot watch signals")?;
    let (shutdown, shutdown_sender) = UnixStream::pair().context("Cannot watch signals")?;
    for sender in [sender, shutdown_sender] {
        signal_hook::low_level::pipe::register(SIGTERM, sender).context("Cannot watch signals")?;
    }
    let signals = Signals { end, window };
    let stats = Arc::new(StatsHub::new());
    let mut vmm = Vmm::new(Arc::new(Nothing), Arc::clone(&stats), false)?;
    vmm.limit_shutdown(shutdown)?;
    let (sender, requests) = api_channel().context("Cannot set up the API")?;
    let board = StatusBoard::default();
    let context = ApiContext {
        sender,
        board: board.clone(),
        stats,
        identity: VmmIdentity::default(),
    };
    let server = start_server(Path::new(socket), context)?;
    vmm.run(&requests, &board, &signals)?;
    server.stop()?;
    Ok(())
}
