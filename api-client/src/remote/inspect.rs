//! `ch-remote inspect`

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::exit_stats::parse_seconds;
use super::output::{Failure, print};
use crate::client::{Client, ClientError, Method, Response};
use crate::inspect::{InspectNode, InspectPath, Inspection, in_natural_order};

/// The live state of a VM.
#[derive(Args, Clone, Debug, Default)]
pub struct InspectArgs {
    /// Part of the state, as virtio/_disk0/queue0 or vcpus/0/registers; all of it
    /// unless given
    #[arg(value_name = "PATH", default_value = "", hide_default_value = true)]
    pub path: String,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub format: TreeFormat,
    /// Refresh continuously, with the rates of counters
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = parse_seconds)]
    pub watch: Option<Duration>,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TreeFormat {
    /// For people
    #[default]
    Tree,
    /// As the API answers
    Json,
}

/// Clears a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Shows the state as the arguments say.
pub fn run(client: &Client, args: &InspectArgs) -> Result<(), Failure> {
    let path: InspectPath = args
        .path
        .parse()
        .map_err(|error| Failure::Line(format!("{error}")))?;
    let target = format!("/api/v1/vm.inspect?path={}", path.encode());
    let ask = || client.request(Method::Get, &target, None);
    let first = ask()?;
    if !first.is_success() {
        return Err(Failure::from_response(&first));
    }
    let clear =
        args.watch.is_some() && args.format == TreeFormat::Tree && std::io::stdout().is_terminal();
    let mut next = Instant::now();
    let mut last = None;
    let mut said = None;
    let mut answer: Result<Response, ClientError> = Ok(first);
    loop {
        let why = match answer {
            Ok(response) if response.is_success() => {
                let text = rendered(&response, args.format, &mut last)?;
                print(&format!("{}{text}", if clear { CLEAR } else { "" }))?;
                None
            }
            // A VM that boots again has the part again.
            Ok(response) => {
                last = None;
                response.messages().pop()
            }
            Err(error) if error.is_timeout() => Some("The VMM does not answer".to_owned()),
            // The VMM ended, which is how a watch ends.
            Err(_) => {
                eprintln!("The VMM is gone.");
                return Ok(());
            }
        };
        if let Some(why) = why.as_ref().filter(|_| said != why) {
            eprintln!("{why}: waiting");
        }
        said = why;
        let Some(interval) = args.watch else {
            return Ok(());
        };
        next = (next + interval).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        answer = ask();
    }
}

/// An answer as it is printed. `last` is the one before it, and then this one.
fn rendered(
    response: &Response,
    format: TreeFormat,
    last: &mut Option<Inspection>,
) -> Result<String, Failure> {
    let body = response.body.as_deref().unwrap_or_default();
    if format == TreeFormat::Json {
        return Ok(format!("{body}\n"));
    }
    let inspection: Inspection = serde_json::from_str(body).map_err(|error| {
        Failure::Line(format!(
            "The answer is not a state: is this another VMM? {error}"
        ))
    })?;
    let text = tree(&inspection, last.as_ref());
    *last = Some(inspection);
    Ok(text)
}

/// The state as text, with rates since `last` if there is one.
fn tree(inspection: &Inspection, last: Option<&Inspection>) -> String {
    let mut text = String::new();
    let rates = last.map(|last| {
        let elapsed = inspection.monotonic_us.saturating_sub(last.monotonic_us);
        (&last.node, elapsed as f64 / 1e6)
    });
    write_node(&mut text, &inspection.node, rates, 0);
    text
}

fn write_node(
    text: &mut String,
    node: &InspectNode,
    last: Option<(&InspectNode, f64)>,
    depth: usize,
) {
    let indent = "  ".repeat(depth);
    let names = node.values.keys().chain(node.counters.keys());
    let width = names.map(|name| name.chars().count()).max().unwrap_or(0);
    for name in in_natural_order(node.values.keys().map(String::as_str)) {
        let value = &node.values[name];
        text.push_str(format!("{indent}{name:width$}  {value}").trim_end());
        text.push('\n');
    }
    for (name, counter) in &node.counters {
        let rate = last.and_then(|(last, seconds)| {
            let grown = counter.checked_sub(*last.counters.get(name)?)?;
            (seconds > 0.0).then(|| format!("  {:.1}/s", grown as f64 / seconds))
        });
        let rate = rate.unwrap_or_default();
        text.push_str(&format!("{indent}{name:width$}  {counter}{rate}\n"));
    }
    for what in &node.unavailable {
        text.push_str(&format!("{indent}! {what}\n"));
    }
    for name in in_natural_order(node.children.keys().map(String::as_str)) {
        let child = &node.children[name];
        let note = if child.on_request {
            "  (on request: name it in the path)"
        } else {
            ""
        };
        text.push_str(&format!("{indent}{}{note}\n", name.escape_debug()));
        let last = last.and_then(|(last, seconds)| Some((last.children.get(name)?, seconds)));
        write_node(text, child, last, depth + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::InspectValue;

    fn disk(read_ops: u64, monotonic_us: u64) -> Inspection {
        let mut queue = InspectNode::default();
        queue.set("size", 256);
        queue.set("descriptor_area", InspectValue::hex(0x1000));
        queue.set("features", vec!["A".to_owned(), "B".to_owned()]);
        queue.lacks("the thread did not answer in time");
        let mut node = InspectNode::default();
        node.set("active", true);
        node.set("status", Vec::<String>::new());
        node.count("read_ops", read_ops);
        for name in ["queue10", "queue9"] {
            node.children.insert(name.to_owned(), queue.clone());
        }
        let registers = InspectNode {
            on_request: true,
            ..InspectNode::default()
        };
        node.children.insert("registers".to_owned(), registers);
        Inspection {
            path: "virtio/_disk0".to_owned(),
            monotonic_us,
            node,
        }
    }

    #[test]
    fn a_state_is_printed_as_a_tree() {
        let expected = "\
active    yes
status
read_ops  7
queue9
  descriptor_area  0x1000
  features         A B
  size             256
  ! the thread did not answer in time
queue10
  descriptor_area  0x1000
  features         A B
  size             256
  ! the thread did not answer in time
registers  (on request: name it in the path)
";
        assert_eq!(tree(&disk(7, 0), None), expected);
    }

    #[test]
    fn counters_have_rates_once_there_are_two_readings() {
        let line = |before: u64, after: u64, at: u64| {
            let text = tree(&disk(after, at), Some(&disk(before, 1_000_000)));
            let line = text.lines().find(|line| line.starts_with("read_ops"));
            line.unwrap().to_owned()
        };
        assert_eq!(line(7, 12, 3_000_000), "read_ops  12  2.5/s");
        assert_eq!(line(7, 7, 2_000_000), "read_ops  7  0.0/s");
        // A counter of another boot, and a clock that stands.
        assert_eq!(line(7, 3, 2_000_000), "read_ops  3");
        assert_eq!(line(7, 9, 1_000_000), "read_ops  9");
    }
}
