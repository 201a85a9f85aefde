//! The command line, as byte strings of any encoding.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;
use core::str;
use core::time::Duration;

use instrumentation::encode::SortBy;

/// The form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// Raw registers.
    Leaves,
}

/// What to read and how to show it.
#[derive(Debug, PartialEq)]
pub struct Options<'a> {
    /// The form of the output.
    pub format: Format,
    /// The order of rows.
    pub sort: SortBy,
    /// Whether to show reasons that never occurred.
    pub all: bool,
    /// Only this reason.
    pub reason: Option<&'a str>,
    /// Times in ticks, not in seconds.
    pub ticks: bool,
    /// How long to wait until the next reading; none means only one.
    pub watch: Option<Duration>,
}

/// What a command line asks for.
#[derive(Debug, PartialEq)]
pub enum Wish<'a> {
    /// The figures.
    Read(Options<'a>),
    /// The help text.
    Help,
    /// The version.
    Version,
}

/// Reads a command line without the program's name.
pub fn parse<'a>(arguments: &[&'a [u8]]) -> Result<Wish<'a>, String> {
    let mut options = Options {
        format: Format::Table,
        sort: SortBy::Exits,
        all: false,
        reason: None,
        ticks: false,
        watch: None,
    };
    let mut rest = arguments.iter().copied().peekable();
    while let Some(argument) = rest.next() {
        let Some(long) = argument.strip_prefix(b"--").filter(|name| !name.is_empty()) else {
            match argument {
                b"--" => match rest.next() {
                    Some(extra) => return Err(format!("unexpected argument {:?}", lossy(extra))),
                    None => break,
                },
                [b'-', b'h', ..] => return Ok(Wish::Help),
                [b'-', b'V', ..] => return Ok(Wish::Version),
                [b'-', _, ..] => {
                    let option: String = lossy(argument).chars().take(2).collect();
                    return Err(format!("invalid option '{option}'"));
                }
                _ => return Err(format!("unexpected argument {:?}", lossy(argument))),
            }
        };
        let mut parts = long.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let attached = parts.next();
        let option = lossy(name);
        let mut value = || {
            let bytes = attached
                .or_else(|| rest.next())
                .ok_or_else(|| format!("missing argument for option '--{option}'"))?;
            str::from_utf8(bytes)
                .map_err(|_| format!("argument is invalid unicode: {:?}", lossy(bytes)))
        };
        match name {
            b"help" => return Ok(Wish::Help),
            b"version" => return Ok(Wish::Version),
            b"format" => options.format = format_called(value()?)?,
            b"sort" => options.sort = order_called(value()?)?,
            b"reason" => options.reason = Some(value()?),
            b"watch" => {
                let next = || rest.next_if(|next| number(next).is_some());
                options.watch = Some(match attached.or_else(next) {
                    Some(text) => interval(text)?,
                    None => Duration::from_secs(1),
                });
            }
            b"json" | b"all" | b"ticks" => {
                if let Some(extra) = attached {
                    return Err(format!(
                        "unexpected argument for option '--{option}': {:?}",
                        lossy(extra)
                    ));
                }
                match name {
                    b"json" => options.format = Format::Json,
                    b"ticks" => options.ticks = true,
                    _ => options.all = true,
                }
            }
            _ => return Err(format!("invalid option '--{option}'")),
        }
    }
    Ok(Wish::Read(options))
}

fn format_called(name: &str) -> Result<Format, String> {
    match name {
        "table" => Ok(Format::Table),
        "json" => Ok(Format::Json),
        "leaves" => Ok(Format::Leaves),
        other => Err(format!("no format is called {other:?}")),
    }
}

fn order_called(name: &str) -> Result<SortBy, String> {
    match name {
        "exits" => Ok(SortBy::Exits),
        "time" | "cycles" => Ok(SortBy::Cycles),
        "number" => Ok(SortBy::Number),
        other => Err(format!("no order is called {other:?}")),
    }
}

fn interval(text: &[u8]) -> Result<Duration, String> {
    let seconds: f64 = lossy(text)
        .parse()
        .map_err(|error| format!("cannot parse argument {:?}: {error}", lossy(text)))?;
    match seconds {
        // Faster than this it would count little but its own exits.
        0.01..=86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!(
            "invalid value {:?} for --watch: 0.01 to 86400 seconds are possible",
            lossy(text)
        )),
    }
}

fn number(text: &[u8]) -> Option<f64> {
    str::from_utf8(text).ok()?.parse().ok()
}

fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed<'a>(line: &'a str) -> Result<Wish<'a>, String> {
        let arguments: Vec<&[u8]> = line.split_whitespace().map(str::as_bytes).collect();
        parse(&arguments)
    }

    fn options(line: &str) -> Options<'_> {
        match parsed(line) {
            Ok(Wish::Read(options)) => options,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn values_follow_their_option_or_its_equals_sign() {
        for line in ["--format json --reason 48", "--format=json --reason=48"] {
            let options = options(line);
            assert_eq!(options.format, Format::Json, "{line}");
            assert_eq!(options.reason, Some("48"), "{line}");
        }
        assert_eq!(
            options("--json --all --sort cycles --").sort,
            SortBy::Cycles
        );
        assert!(options("--all").all && options("--ticks").ticks);
        assert_eq!(options("--sort time").sort, SortBy::Cycles);
    }

    #[test]
    fn watch_takes_the_next_word_only_if_it_is_a_number() {
        let seconds = |line| options(line).watch.map(|watch| watch.as_secs_f64());
        assert_eq!(seconds("--watch"), Some(1.0));
        assert_eq!(seconds("--watch --all"), Some(1.0));
        assert_eq!(seconds("--watch 0.5"), Some(0.5));
        assert_eq!(seconds("--watch=2"), Some(2.0));
        assert_eq!(seconds("--all"), None);
    }

    #[test]
    fn help_and_version_come_before_whatever_follows() {
        for line in ["-h", "--help", "--all --help --bogus"] {
            assert_eq!(parsed(line), Ok(Wish::Help), "{line}");
        }
        assert_eq!(parsed("-V"), Ok(Wish::Version));
        assert_eq!(parsed("--version"), Ok(Wish::Version));
    }

    #[test]
    fn a_wrong_command_line_is_told_by_its_wrong_word() {
        for (line, error) in [
            ("--bogus", "invalid option '--bogus'"),
            ("--bogus=1", "invalid option '--bogus'"),
            ("-x", "invalid option '-x'"),
            ("cpuid", "unexpected argument \"cpuid\""),
            ("-- --all", "unexpected argument \"--all\""),
            ("--json=1", "unexpected argument for option '--json': \"1\""),
            ("--format", "missing argument for option '--format'"),
            ("--format xml", "no format is called \"xml\""),
            ("--sort name", "no order is called \"name\""),
            (
                "--watch=soon",
                "cannot parse argument \"soon\": invalid float literal",
            ),
            (
                "--watch -1",
                "invalid value \"-1\" for --watch: 0.01 to 86400 seconds are possible",
            ),
            (
                "--watch 0",
                "invalid value \"0\" for --watch: 0.01 to 86400 seconds are possible",
            ),
            (
                "--watch=nan",
                "invalid value \"nan\" for --watch: 0.01 to 86400 seconds are possible",
            ),
        ] {
            assert_eq!(parsed(line), Err(error.into()), "{line}");
        }
        assert_eq!(
            parse(&[b"--reason", b"\xff"]),
            Err("argument is invalid unicode: \"\u{fffd}\"".into())
        );
    }
}
