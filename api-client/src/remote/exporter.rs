//! `ch-remote exporter`

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use clap::Args;
use instrumentation::encode::Detail;

use super::output::Failure;
use crate::exporter::{Patterns, Vms, serve};

/// Where to serve, and what.
#[derive(Args, Clone, Debug)]
pub struct ExporterArgs {
    /// Address to serve scrapes on: ADDRESS:PORT, NAME:PORT, or :PORT for all addresses
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9283")]
    pub listen: String,
    /// Time that a scrape waits for VMs, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, alias = "patience")]
    pub scrape_timeout: u64,
    /// Also divide by vCPU what is counted by reason
    #[arg(long)]
    pub per_vcpu: bool,
    /// API or statistics sockets, with * and ? for those that come and go
    #[arg(value_name = "SOCKET", required = true)]
    pub sockets: Vec<String>,
}

/// Serves until it is ended.
pub fn run(args: &ExporterArgs) -> Result<(), Failure> {
    let patterns = Patterns::new(&args.sockets).map_err(|error| Failure::from_error(&error))?;
    let detail = match args.per_vcpu {
        true => Detail::Vcpu,
        false => Detail::Vm,
    };
    let cannot_listen = |error| Failure::Line(format!("Cannot listen on {}: {error}", args.listen));
    let addresses = addresses(&args.listen).map_err(Failure::Line)?;
    let listener = TcpListener::bind(addresses.as_slice()).map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    eprintln!("ch-remote exporter: serves http://{address}/metrics");
    if !address.ip().is_loopback() {
        eprintln!(
            "ch-remote exporter: warning: {address} can be reached from other hosts, without \
             encryption or authentication"
        );
    }
    let vms = Vms::new(patterns, Duration::from_millis(args.scrape_timeout), detail);
    serve(listener, vms)
        .map_err(|error| Failure::Line(format!("Cannot serve on {}: {error}", args.listen)))
}

/// The addresses that `--listen` may stand for, the preferred one first.
fn addresses(text: &str) -> Result<Vec<SocketAddr>, String> {
    let invalid = |why: &str| {
        format!(
            "invalid value {text:?} for '--listen': {why}; \
             valid: ADDRESS:PORT, NAME:PORT, [ADDRESS]:PORT, :PORT"
        )
    };
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(invalid("a port is missing"));
    };
    let port: u16 = port
        .parse()
        .map_err(|_| invalid("the port is not a number from 0 to 65535"))?;
    if host.is_empty() {
        // The first takes IPv4 too, where the host has IPv6 at all.
        return Ok(vec![
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), port).into(),
            (IpAddr::from(Ipv4Addr::UNSPECIFIED), port).into(),
        ]);
    }
    match text.to_socket_addrs() {
        Ok(found) => Ok(found.collect()),
        Err(error) => Err(invalid(&error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_names_and_ports_alone_are_understood() {
        assert_eq!(
            addresses("127.0.0.1:9283").unwrap(),
            ["127.0.0.1:9283".parse().unwrap()]
        );
        assert_eq!(addresses("[::1]:1").unwrap(), ["[::1]:1".parse().unwrap()]);
        assert!(
            addresses("localhost:9283")
                .unwrap()
                .iter()
                .all(|address| address.ip().is_loopback() && address.port() == 9283)
        );
        let all = addresses(":9283").unwrap();
        assert!(
            all.iter()
                .all(|it| it.ip().is_unspecified() && it.port() == 9283)
        );
        assert!(TcpListener::bind(addresses(":0").unwrap().as_slice()).is_ok());
    }

    #[test]
    fn what_is_no_address_is_named_with_what_is() {
        for text in [
            "",
            "9283",
            "127.0.0.1",
            "127.0.0.1:x",
            "localhost:70000",
            "::1:",
        ] {
            let error = addresses(text).unwrap_err();
            assert!(
                error.contains("--listen") && error.contains(":PORT"),
                "{error}"
            );
        }
    }
}
