//! `ch-remote exporter` in a process of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::endpoint::{ch_remote, wait_until};
use crate::command::bound_command;
use crate::tree::Tree;

/// A running exporter; ends with the value.
#[derive(Debug)]
pub struct Exporter {
    child: Child,
    address: SocketAddr,
}

impl Exporter {
    /// Serves all sockets in a folder.
    pub fn start(tree: &Tree, folder: &Path) -> Result<Self> {
        let address = free_address()?;
        let pattern = format!("{}/*.sock", folder.display());
        let child = bound_command(
            &ch_remote(tree).to_string_lossy(),
            ["exporter", "--listen", &address.to_string(), &pattern],
        )
        .stdin(Stdio::null())
        .spawn()
        .context("Cannot start ch-remote exporter")?;
        let exporter = Exporter { child, address };
        wait_until("the exporter listens", || {
            TcpStream::connect(address).is_ok()
        })?;
        Ok(exporter)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A scrape's body.
    pub fn scrape(&self) -> Result<String> {
        get(TcpStream::connect(self.address)?)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of this machine that nobody listens at.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("There is no free port")?;
    Ok(listener.local_addr()?)
}

fn get(mut stream: TcpStream) -> Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.contains(" 200 "), "The exporter answers {line:?}");
    while !line.trim().is_empty() {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let mut body = String::new();
    reader.read_to_string(&mut body)?;
    Ok(body)
}
