//! Measures on this host what `cargo lab bench` shows, a module a section.

use anyhow::{Context, Result, bail};
use lab::bench::FIGURE;

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

fn figure(name: &str, value: f64) {
    println!("{FIGURE}{name} {value}");
}
