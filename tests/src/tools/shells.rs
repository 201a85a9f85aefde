//! What shells make of the tabulator key, with the completions that the packages
//! install.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use super::terminal::Terminal;
use crate::package::write_documents;
use crate::tree::Tree;

const PROGRAMS: [&str; 3] = ["ch-remote", "cloud-hypervisor", "exit-stats"];

/// What is typed before the key, and what the shell makes of it: the line goes on
/// so, or the words are offered.
const OFFERS: [(&str, Offer); 7] = [
    ("ch-remote ex", Offer::Words(&["exit-stats", "exporter"])),
    ("ch-remote remove-d", Offer::Rest("evice")),
    ("ch-remote exit-stats --form", Offer::Rest("at")),
    ("ch-remote exit-stats --format o", Offer::Rest("penmetrics")),
    (
        "ch-remote exit-stats record --until",
        Offer::Rest("-shutdown"),
    ),
    ("cloud-hypervisor --initr", Offer::Rest("amfs")),
    ("exit-stats --sort c", Offer::Rest("ycles")),
];

#[derive(Clone, Copy, Debug)]
enum Offer {
    Rest(&'static str),
    Words(&'static [&'static str]),
}

impl Offer {
    /// Whether the screen shows it, once the key was pressed.
    fn is_shown(self, screen: &str, typed: &str) -> bool {
        let words: Vec<&str> = screen.split_whitespace().collect();
        match self {
            Offer::Rest(rest) => screen.contains(&format!("{typed}{rest}")),
            Offer::Words(offered) => offered.iter().all(|word| words.contains(word)),
        }
    }
}

pub fn bash_completes_commands_flags_and_values(tree: &Tree) -> Result<()> {
    completes(tree, "bash", "bash --norc --noprofile -i", |folder| {
        format!("for each in {folder}/*.bash; do . $each; done")
    })
}

pub fn zsh_completes_commands_flags_and_values(tree: &Tree) -> Result<()> {
    completes(tree, "zsh", "zsh -f -i", |folder| {
        format!("fpath=({folder} $fpath); autoload -U compinit; compinit -D -u")
    })
}

pub fn fish_completes_commands_flags_and_values(tree: &Tree) -> Result<()> {
    completes(tree, "fish", "fish --no-config -i", |folder| {
        format!("set -g fish_complete_path {folder}")
    })
}

/// Types into a shell in a terminal. `set_up` is what tells it of the folder with
/// completions.
fn completes(
    tree: &Tree,
    shell: &str,
    program: &str,
    set_up: impl Fn(&str) -> String,
) -> Result<()> {
    let written = write_documents(tree, "2026-01-01")?;
    let folder = tree.fresh_log_dir(&format!("tools-{shell}"))?;
    // Programs to complete for: fish offers nothing for what is not there.
    let bin = folder.join("bin");
    fs::create_dir(&bin)?;
    for name in PROGRAMS {
        symlink("/bin/true", bin.join(name))?;
    }
    // Nobody's own settings, and a prompt that does not change.
    let home = folder.display();
    let terminal = Terminal::run(
        &folder,
        &format!(
            "cd {home} && env HOME={home} PATH={home}/bin:$PATH PS1='> ' LC_ALL=C.UTF-8 {program}"
        ),
    )?;
    say(&terminal, &set_up(&path(&written.join("completions"))?))?;
    for (typed, offer) in OFFERS {
        // Where several words fit, bash lists them when the key comes again.
        let keys: &[&str] = match offer {
            Offer::Rest(_) => &["Tab"],
            Offer::Words(_) => &["Tab", "Tab"],
        };
        terminal.press(&[&[typed], keys].concat())?;
        terminal
            .wait_for(&format!("{offer:?} after {typed:?}"), |screen| {
                offer.is_shown(screen, typed)
            })
            .with_context(|| shell.to_owned())?;
        // Away with an open list, then with the line.
        terminal.press(&["Escape", "C-c"])?;
        say(&terminal, "clear")?;
    }
    Ok(())
}

/// Has the shell run a line, and waits until it has.
fn say(terminal: &Terminal, line: &str) -> Result<()> {
    // Written so that the line as it is typed does not hold what is waited for.
    terminal.press(&[&format!("{line}; echo re''ady"), "Enter"])?;
    terminal.wait_for("that the shell is ready", |screen| {
        screen.lines().any(|line| line.trim() == "ready")
    })?;
    Ok(())
}

fn path(folder: &Path) -> Result<String> {
    let path = folder.to_str().context("The folder has an odd name")?;
    Ok(path.to_owned())
}
