//! `ch-remote exporter` in a process of its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use super::endpoint::{ch_remote, wait_until};
use crate::command::bound_command;
use crate::tree::Tree;
use crate::vmm::request_tcp;

/// A running exporter; ends with the value.
#[derive(Debug)]
pub struct Exporter {
    child: Child,
    address: SocketAddr,
}

impl Exporter {
    /// Serves all sockets in a folder.
    pub fn start(tree: &Tree, folder: &Path) -> Result<Self> {
        Exporter::start_in(tree, folder, &format!("{}/*.sock", folder.display()))
    }

    /// Serves what this path or pattern means in a folder, under the same names
    /// as another exporter in another folder.
    pub fn start_in(tree: &Tree, folder: &Path, pattern: &str) -> Result<Self> {
        let address = free_address()?;
        let child = bound_command(
            &ch_remote(tree).to_string_lossy(),
            ["exporter", "--listen", &address.to_string(), pattern],
        )
        .current_dir(folder)
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
        let response = request_tcp(self.address, "/metrics")?;
        ensure!(
            response.status == 200,
            "The exporter answers {}",
            response.status
        );
        Ok(response.body)
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
