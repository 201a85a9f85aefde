//! Writes manual pages and shell completions of the three programs, from the
//! definitions of their command lines.
//!
//! usage: documents FOLDER DATE
//!
//! An example, so that only who packs pays for what it needs. `cargo lab
//! package` runs it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::{Generator, Shell};

// The one module that names all flags of the VMM. It is of the program, not of
// the library, so it is taken in as it stands.
#[allow(dead_code, reason = "only the definition is wanted")]
#[path = "../../../vmm/src/bin/cloud-hypervisor/args.rs"]
mod args;
#[cfg(test)]
mod flags;
mod page;
mod reader;

use page::{CH_REMOTE, CLOUD_HYPERVISOR, EXIT_STATS, Page};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let folder: PathBuf = arguments
        .next()
        .context("Name a folder to write to")?
        .into();
    let date = arguments.next().context("Name the pages' date")?;
    let date = date.to_string_lossy();
    for (command, page) in [
        (args::Args::command(), &CLOUD_HYPERVISOR),
        (api_client::remote::definition(), &CH_REMOTE),
        (reader::definition(), &EXIT_STATS),
    ] {
        let command = command.version(env!("CARGO_PKG_VERSION"));
        write_pages(&command, page, &date, &folder.join("man"))?;
        write_completions(command, &folder.join("completions"))?;
    }
    Ok(())
}

/// A page for the program and one for each of its subcommands.
fn write_pages(command: &Command, page: &Page, date: &str, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    // Built, so that subcommands know their full names; `help` has no page.
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let mut rest = vec![(command, Some(page))];
    while let Some((command, page)) = rest.pop() {
        let name = command
            .get_display_name()
            .unwrap_or_else(|| command.get_name())
            .to_owned();
        let text = page::render(&command, page, date)?;
        let file = folder.join(format!("{name}.1"));
        fs::write(&file, text).with_context(|| format!("Cannot write {}", file.display()))?;
        rest.extend(command.get_subcommands().map(|one| (one.clone(), None)));
    }
    Ok(())
}

fn write_completions(mut command: Command, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, &name, &mut script);
        let mut script = String::from_utf8(script)?;
        if shell == Shell::Bash {
            // clap_complete 4.6.11 writes a hyphen in the program's name in two
            // ways, and so never arrives at a subcommand.
            script = script.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"));
        }
        let file = folder.join(shell.file_name(&name));
        fs::write(&file, script).with_context(|| format!("Cannot write {}", file.display()))?;
    }
    Ok(())
}
