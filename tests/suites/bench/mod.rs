//! Measures on this host what `cargo lab bench` shows, a module a section.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lab::bench::{FIGURE, PEERS};

use crate::site::Site;

mod boot;
mod exits;
mod io;
mod load;

/// Runs sections by name.
pub fn run(site: &Site, sections: &[String]) -> Result<()> {
    for name in sections {
        let measure: fn(&Site) -> Result<()> = match name.as_str() {
            "exits" => exits::measure,
            "boot" => boot::measure,
            "disk" => io::disk,
            "net" => io::net,
            "load" => load::measure,
            _ => bail!("No section is called {name}"),
        };
        measure(site).with_context(|| format!("Section {name}"))?;
    }
    Ok(())
}

/// The programs that were brought along, by name.
fn peers() -> Result<Vec<(String, PathBuf)>> {
    if !Path::new(PEERS).exists() {
        return Ok(Vec::new());
    }
    let mut peers = Vec::new();
    for entry in fs::read_dir(PEERS).context("Cannot list the peers")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        peers.push((name.into_owned(), path.clone()));
    }
    peers.sort();
    Ok(peers)
}

fn figure(name: &str, value: f64) {
    println!("{FIGURE}{name} {value}");
}
