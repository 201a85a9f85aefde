//! The program's own messages: to standard error or a file, one line each, in
//! the form that `--log-format` gives.

use std::fmt::Write as _;
use std::io::Write;
use std::str::FromStr;
use std::time::Instant;

use anyhow::Context;
use env_logger::{Builder, Target};
use jiff::Zoned;
use jiff::tz::TimeZone;
use log::{LevelFilter, Record};
use vmm::host_file::create_output;

use crate::args::Args;

/// Cloud Hypervisor's form of a line.
const DEFAULT_FORMAT: &str =
    "cloud-hypervisor: {boottime}s: <{thread}> {level}:{location} -- {msg}";

/// Starts logging as the arguments say.
pub fn start(args: &Args) -> anyhow::Result<()> {
    let level = match args.verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let format = args.log_format.as_deref().unwrap_or(DEFAULT_FORMAT);
    let format: Format = format.parse().context("--log-format")?;
    let target = match &args.log_file {
        None => Target::Stderr,
        Some(path) => {
            let file = create_output(path)
                .with_context(|| format!("Cannot create the log file {}", path.display()))?;
            Target::Pipe(Box::new(file))
        }
    };
    let start = Instant::now();
    Builder::new()
        .filter_level(level)
        .target(target)
        .format(move |out, record| writeln!(out, "{}", format.line(record, start)))
        .try_init()
        .context("Cannot start the log")
}

/// What is wrong with a format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum FormatError {
    #[error("unknown token {{{0}}}; valid: {names}", names = token_names())]
    Token(String),
    #[error("a brace is not closed; {{{{ and }}}} stand for braces themselves")]
    Brace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    BootTime,
    Thread,
    Level,
    LevelChar,
    Location,
    Message,
    Pid,
    Tid,
    /// The time as this format of the standard's has it.
    Utc(&'static str),
    /// The same in the system's time zone.
    Local(&'static str),
}

const RFC_3339: &str = "%Y-%m-%dT%H:%M:%S.%6fZ";
const GLOG: &str = "%m%d %H:%M:%S.%6f";

const TOKENS: &[(&str, Token)] = &[
    ("boottime", Token::BootTime),
    ("wallclock", Token::Utc(RFC_3339)),
    ("glog", Token::Utc(GLOG)),
    ("localglog", Token::Local(GLOG)),
    ("thread", Token::Thread),
    ("level", Token::Level),
    ("levelchar", Token::LevelChar),
    ("location", Token::Location),
    ("msg", Token::Message),
    ("pid", Token::Pid),
    ("tid", Token::Tid),
    ("year", Token::Utc("%Y")),
    ("month", Token::Utc("%m")),
    ("day", Token::Utc("%d")),
    ("hour", Token::Utc("%H")),
    ("minute", Token::Utc("%M")),
    ("second", Token::Utc("%S")),
    ("micros", Token::Utc("%6f")),
    ("offset", Token::Utc("%:z")),
    ("localyear", Token::Local("%Y")),
    ("localmonth", Token::Local("%m")),
    ("localday", Token::Local("%d")),
    ("localhour", Token::Local("%H")),
    ("localminute", Token::Local("%M")),
    ("localsecond", Token::Local("%S")),
    ("localmicros", Token::Local("%6f")),
    ("localoffset", Token::Local("%:z")),
];

fn token_names() -> String {
    let names: Vec<_> = TOKENS.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Token(Token),
}

/// How a line looks.
#[derive(Debug)]
struct Format {
    parts: Vec<Part>,
    /// Read once: a thread that logs may not open files.
    zone: TimeZone,
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text.chars().peekable();
        while let Some(character) = rest.next() {
            match character {
                '{' | '}' if rest.next_if_eq(&character).is_some() => plain.push(character),
                '}' => return Err(FormatError::Brace),
                '{' => {
                    let mut name = String::new();
                    loop {
                        match rest.next() {
                            Some('}') => break,
                            Some(character) => name.push(character),
                            None => return Err(FormatError::Brace),
                        }
                    }
                    let Some((_, token)) = TOKENS.iter().find(|(known, _)| *known == name) else {
                        return Err(FormatError::Token(name));
                    };
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                    parts.push(Part::Token(*token));
                }
                _ => plain.push(character),
            }
        }
        parts.push(Part::Text(plain));
        Ok(Self {
            parts,
            zone: TimeZone::system(),
        })
    }
}

impl Format {
    /// A record as a line. All times in it are of the same instant.
    fn line(&self, record: &Record<'_>, start: Instant) -> String {
        let now = jiff::Timestamp::now();
        let utc = now.to_zoned(TimeZone::UTC);
        let local = now.to_zoned(self.zone.clone());
        let mut line = String::new();
        for part in &self.parts {
            // Writing to a string does not fail.
            let _ = match part {
                Part::Text(text) => line.write_str(text),
                Part::Token(token) => token.write(&mut line, record, start, &utc, &local),
            };
        }
        line
    }
}

impl Token {
    fn write(
        self,
        line: &mut String,
        record: &Record<'_>,
        start: Instant,
        utc: &Zoned,
        local: &Zoned,
    ) -> std::fmt::Result {
        match self {
            Token::BootTime => write!(line, "{:.6}", start.elapsed().as_secs_f64()),
            Token::Thread => {
                let thread = std::thread::current();
                line.write_str(thread.name().unwrap_or("anonymous"))
            }
            Token::Level => line.write_str(record.level().as_str()),
            Token::LevelChar => line.write_str(&record.level().as_str()[..1]),
            Token::Location => match (record.file(), record.line()) {
                (Some(file), Some(number)) => write!(line, "{file}:{number}"),
                _ => line.write_str(record.target()),
            },
            Token::Message => {
                let message = record.args().to_string();
                // Paths and names come from clients: none of them begins a
                // line of its own or drives the terminal.
                for character in message.chars() {
                    if character.is_control() {
                        write!(line, "{}", character.escape_default())?;
                    } else {
                        line.push(character);
                    }
                }
                Ok(())
            }
            Token::Pid => write!(line, "{}", std::process::id()),
            Token::Tid => write!(line, "{}", rustix::thread::gettid().as_raw_nonzero()),
            Token::Utc(format) => write!(line, "{}", utc.strftime(format)),
            Token::Local(format) => write!(line, "{}", local.strftime(format)),
        }
    }
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    fn line(format: &str, message: &str) -> String {
        let format: Format = format.parse().unwrap();
        let arguments = format_args!("{message}");
        let record = Record::builder()
            .level(Level::Warn)
            .file(Some("src/a.rs"))
            .line(Some(7))
            .args(arguments)
            .build();
        format.line(&record, Instant::now())
    }

    #[test]
    fn the_default_is_cloud_hypervisors_line() {
        let line = line(DEFAULT_FORMAT, "text");
        let (time, rest) = line
            .strip_prefix("cloud-hypervisor: ")
            .and_then(|rest| rest.split_once("s: <"))
            .unwrap();
        let (_, micros) = time.split_once('.').unwrap();
        assert_eq!(micros.len(), 6, "{line}");
        assert!(rest.ends_with("> WARN:src/a.rs:7 -- text"), "{line}");
    }

    #[test]
    fn every_token_says_something_and_braces_can_be_had() {
        for (name, _) in TOKENS {
            assert!(!line(&format!("{{{name}}}"), "x").is_empty(), "{name}");
        }
        assert_eq!(line("{{{levelchar}}} {msg}", "x"), "{W} x");
        let zulu = line("{wallclock}", "");
        let parsed: jiff::Timestamp = zulu.parse().unwrap();
        assert!(jiff::Timestamp::now().duration_since(parsed).as_secs() < 60);
        assert_eq!(zulu.len(), "2024-01-15T10:30:45.123456Z".len());
        let glog = line("{glog}", "");
        assert_eq!(glog.len(), "0521 08:02:15.542701".len(), "{glog}");
        assert_eq!(line("{offset}", ""), "+00:00");
    }

    #[test]
    fn what_a_client_named_stays_on_its_line() {
        assert_eq!(line("{msg}", "a\nb\u{1b}[2Jc\"ä"), "a\\nb\\u{1b}[2Jc\"ä");
    }

    #[test]
    fn a_format_that_is_none_is_refused() {
        let refused = |format: &str| format.parse::<Format>().unwrap_err();
        assert_eq!(refused("{time}"), FormatError::Token("time".into()));
        assert!(refused("{x}").to_string().contains("boottime, wallclock"));
        for format in ["{msg", "msg}", "{"] {
            assert_eq!(refused(format), FormatError::Brace, "{format}");
        }
    }
}
