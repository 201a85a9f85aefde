//! `ch-remote exporter`

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::output::Failure;
use crate::exporter::{Vms, serve};

/// Where to serve, and what.
#[derive(Args, Clone, Debug)]
pub struct ExporterArgs {
    /// Address to serve scrapes on
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9283")]
    pub listen: SocketAddr,
    /// Milliseconds that a scrape waits for a VM
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub patience: u64,
    /// API sockets, with * and ? for those that come and go
    #[arg(value_name = "SOCKET", required = true)]
    pub sockets: Vec<String>,
}

/// Serves until it is ended.
pub fn run(args: &ExporterArgs) -> Result<(), Failure> {
    let vms = Vms::new(&args.sockets, Duration::from_millis(args.patience))
        .map_err(|error| Failure::from_error(&error))?;
    let listener = TcpListener::bind(args.listen)
        .map_err(|error| Failure::Line(format!("Cannot listen on {}: {error}", args.listen)))?;
    serve(&listener, &Arc::new(vms))
        .map_err(|error| Failure::Line(format!("Cannot serve on {}: {error}", args.listen)))
}
