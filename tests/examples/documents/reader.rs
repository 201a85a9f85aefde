//! The command line of `exit-stats`, which has no parser that could describe
//! itself: its help text is the definition.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command};

const HELP: &str = include_str!("../../../instrumentation/src/bin/exit-stats/help.txt");

/// What the help text says.
pub fn definition() -> Command {
    let about = HELP.lines().next().unwrap_or_default();
    HELP.lines()
        .skip_while(|line| *line != "Options:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .fold(
            Command::new("exit-stats")
                .about(about)
                .disable_help_flag(true)
                .disable_version_flag(true),
            |command, line| command.arg(option(line)),
        )
}

/// `  -h, --help          this text`
fn option(line: &'static str) -> Arg {
    let text = line.trim_start();
    // One space is enough where the flag leaves no room for more.
    let mut words = text.split_whitespace();
    let mut arg: Option<Arg> = None;
    let mut short = None;
    let mut rest = text;
    while let Some(word) = words.next() {
        rest = rest[rest.find(word).unwrap_or(0) + word.len()..].trim_start();
        if let Some(long) = word.strip_prefix("--") {
            arg = Some(Arg::new(long).long(long).action(ArgAction::SetTrue));
            if rest.starts_with(|next: char| next == '[' || next.is_uppercase()) {
                let value = words.next().unwrap_or_default();
                rest = rest[value.len()..].trim_start();
                arg = arg.map(|arg| with_value(arg, long, value));
            }
            break;
        }
        short = word.trim_end_matches(',').chars().nth(1);
    }
    let arg = arg.unwrap_or_else(|| Arg::new(text));
    let arg = match short {
        Some(letter) => arg.short(letter),
        None => arg,
    };
    arg.help(rest)
}

fn with_value(arg: Arg, long: &str, value: &'static str) -> Arg {
    let name = value.trim_matches(['[', ']']);
    let arg = arg.action(ArgAction::Set).value_name(name);
    let arg = if value.starts_with('[') {
        arg.num_args(0..=1)
    } else {
        arg
    };
    match long {
        "format" => arg.value_parser(PossibleValuesParser::new(["table", "json", "leaves"])),
        "sort" => arg.value_parser(PossibleValuesParser::new(["exits", "cycles", "number"])),
        _ => arg,
    }
}
