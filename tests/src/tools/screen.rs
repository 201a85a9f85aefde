//! `ch-remote exit-stats --watch` in a real terminal.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::endpoint::{Endpoint, Pace, Profile, ch_remote};
use super::terminal::Terminal;
use crate::command::{command, text};
use crate::host::Isa;
use crate::tree::Tree;

/// The view and the machine that it shows.
struct View {
    terminal: Terminal,
    folder: PathBuf,
    _machine: Endpoint,
}

impl View {
    fn open(tree: &Tree, name: &str, pace: Pace, environment: &str) -> Result<Self> {
        let folder = tree.fresh_log_dir(name)?;
        let socket = folder.join("vm.sock");
        let machine = Endpoint::start(tree, Profile::Debug, &socket, Isa::Vmx, 2, pace)?;
        let terminal = Terminal::run(
            &folder,
            &format!(
                "cd {} && env {environment} {} --api-socket vm.sock exit-stats --watch 0.2",
                folder.display(),
                ch_remote(tree).display()
            ),
        )?;
        Ok(View {
            terminal,
            folder,
            _machine: machine,
        })
    }
}

/// Symbols in the order of the rows.
fn rows(screen: &str) -> Vec<String> {
    screen
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            words.next()?.parse::<u32>().ok()?;
            Some(words.next()?.to_owned())
        })
        .collect()
}

pub fn screen_reads_as_it_should(tree: &Tree) -> Result<()> {
    let view = View::open(tree, "tools-screen", Pace::Still, "")?;
    // It says nothing of time before there are two readings.
    let found = view
        .terminal
        .wait_for("the split of time", |screen| screen.contains("Time: "))?;
    let golden = tree.root().join("tests/goldens/watch.txt");
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        fs::write(&golden, format!("{found}\n"))?;
    }
    let expected =
        fs::read_to_string(&golden).with_context(|| format!("Cannot read {}", golden.display()))?;
    ensure!(
        found.trim_end() == expected.trim_end(),
        "The screen should read\n{expected}\nbut reads\n{found}\n\
         (after a change that is meant: UPDATE_GOLDENS=1 cargo lab test)"
    );
    Ok(())
}

pub fn keys_sort_filter_open_freeze_and_quit(tree: &Tree) -> Result<()> {
    let view = View::open(tree, "tools-keys", Pace::Moving, "")?;
    let terminal = &view.terminal;
    terminal.wait_for("a rate", |screen| {
        screen.contains("/s") && screen.contains("sort: rate")
    })?;

    for (sort, by_number) in [("exits", false), ("time", false), ("number", true)] {
        terminal.press(&["s"])?;
        let screen = terminal.wait_for("the next sort", |screen| {
            screen.contains(&format!("sort: {sort}"))
        })?;
        // More exits are made up for a reason the higher its number is.
        let first = if by_number { "EXCEPTION_NMI" } else { "XSETBV" };
        ensure!(
            rows(&screen).first().map(String::as_str) == Some(first),
            "Sorted by {sort}:\n{screen}"
        );
    }

    terminal.press(&["/", "I", "O", "_"])?;
    let screen = terminal.wait_for("what is typed", |screen| screen.contains("filter: IO__"))?;
    ensure!(rows(&screen) == ["IO_INSTRUCTION"], "Filtered:\n{screen}");
    terminal.press(&["Enter"])?;

    terminal.wait_for("the end of typing", |screen| {
        screen.contains("/ filter: IO_")
    })?;
    terminal.press(&["Enter"])?;
    terminal.wait_for("the devices behind it", |screen| {
        screen.contains("serial") && screen.contains("0x3f8") && screen.contains("by vCPU  0: ")
    })?;
    terminal.press(&["Escape"])?;
    terminal.wait_for("the closed row", |screen| !screen.contains("0x3f8"))?;
    terminal.press(&["Escape"])?;
    terminal.wait_for("all rows again", |screen| rows(screen).len() > 10)?;

    terminal.press(&["f"])?;
    let frozen = terminal.wait_for("that it is frozen", |screen| screen.contains("f resume"))?;
    sleep(Duration::from_secs(1));
    let later = terminal.screen()?;
    ensure!(frozen == later, "Frozen:\n{frozen}\nyet later:\n{later}");
    terminal.press(&["f"])?;
    terminal.wait_for("that it goes on", |screen| {
        screen.contains("f freeze") && screen.lines().next() != frozen.lines().next()
    })?;

    terminal.press(&["q"])?;
    let screen = terminal.wait_for("the end", |screen| screen.contains("[ended: 0]"))?;
    ensure!(
        !screen.contains("IO_INSTRUCTION"),
        "The terminal is not given back as it was:\n{screen}"
    );
    Ok(())
}

pub fn no_color_means_no_colour(tree: &Tree) -> Result<()> {
    // Reverse, bold and dim are no colours.
    let coloured = |screen: &str| {
        ["\x1b[3", "\x1b[38;5;", "\x1b[9"].iter().any(|start| {
            screen
                .match_indices(start)
                .any(|(at, _)| !screen[at..].starts_with("\x1b[39m"))
        })
    };
    for (environment, expected) in [("-u NO_COLOR", true), ("NO_COLOR=1", false)] {
        let view = View::open(tree, "tools-colour", Pace::Moving, environment)?;
        view.terminal
            .wait_for("a rate", |screen| screen.contains("IO_INSTRUCTION"))?;
        let screen = view.terminal.coloured_screen()?;
        fs::write(view.folder.join("screen.txt"), &screen)?;
        ensure!(
            coloured(&screen) == expected,
            "With {environment}:\n{screen:?}"
        );
    }
    Ok(())
}

pub fn without_a_terminal_there_are_plain_lines(tree: &Tree) -> Result<()> {
    let folder = tree.fresh_log_dir("tools-lines")?;
    let socket = folder.join("vm.sock");
    let _machine = Endpoint::start(tree, Profile::Debug, &socket, Isa::Vmx, 2, Pace::Moving)?;
    // It goes on until its reader has enough.
    let shell = format!(
        "{} --api-socket {} exit-stats --watch 0.2 | head -3",
        ch_remote(tree).display(),
        socket.display()
    );
    let shown = text(&mut command("sh", ["-c", &shell]))?;
    ensure!(shown.lines().count() == 3, "Three lines:\n{shown}");
    for line in shown.lines() {
        ensure!(
            line.contains(" exits/s  ") && line.contains('%') && !line.contains('\x1b'),
            "A line reads {line:?}"
        );
    }
    Ok(())
}
