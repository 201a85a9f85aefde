//! The live state of a VMM and its machine as a tree that is asked for by path:
//! what `vm.inspect` answers, and how a path is written.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest path, in bytes as it is written.
pub const MAX_PATH: usize = 1024;
/// Names that an error lists.
const MAX_NAMES: usize = 40;

/// Answer of `vm.inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The path that was asked for; empty for the whole tree.
    pub path: String,
    /// When the state was read: microseconds of the host's monotonic clock.
    pub monotonic_us: u64,
    /// The state at the path.
    pub node: InspectNode,
}

/// A part of the live state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectNode {
    /// What is so at the moment, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, InspectValue>,
    /// What only grows as long as the part exists, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
    /// What could not be found out within the time of an answer, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<String>,
    /// The contents are read only if the path names this part: to read them
    /// costs the guest an exit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_request: bool,
    /// The parts of this part, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub children: BTreeMap<String, InspectNode>,
}

/// A value. Addresses and bit masks are text in hexadecimal, as `0xfebf0000`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InspectValue {
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(u64),
    /// A word, an address, a mask.
    Text(String),
    /// Several words.
    List(Vec<String>),
}

impl InspectValue {
    /// An address or a mask.
    #[must_use]
    pub fn hex(number: u64) -> Self {
        InspectValue::Text(format!("{number:#x}"))
    }
}

impl From<bool> for InspectValue {
    fn from(flag: bool) -> Self {
        InspectValue::Flag(flag)
    }
}

impl From<u64> for InspectValue {
    fn from(number: u64) -> Self {
        InspectValue::Number(number)
    }
}

impl From<&str> for InspectValue {
    fn from(text: &str) -> Self {
        InspectValue::Text(text.to_owned())
    }
}

impl From<String> for InspectValue {
    fn from(text: String) -> Self {
        InspectValue::Text(text)
    }
}

impl From<Vec<String>> for InspectValue {
    fn from(list: Vec<String>) -> Self {
        InspectValue::List(list)
    }
}

impl fmt::Display for InspectValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InspectValue::Flag(flag) => write!(f, "{}", if *flag { "yes" } else { "no" }),
            InspectValue::Number(number) => write!(f, "{number}"),
            InspectValue::Text(text) => f.write_str(text),
            InspectValue::List(list) => f.write_str(&list.join(" ")),
        }
    }
}

impl InspectNode {
    /// Sets a value.
    pub fn set(&mut self, name: &str, value: impl Into<InspectValue>) {
        self.values.insert(name.to_owned(), value.into());
    }

    /// Sets a counter.
    pub fn count(&mut self, name: &str, counter: u64) {
        self.counters.insert(name.to_owned(), counter);
    }

    /// Says what could not be found out, and why.
    pub fn lacks(&mut self, what: impl Into<String>) {
        self.unavailable.push(what.into());
    }

    /// Takes the part at `path` out of the tree.
    ///
    /// # Errors
    /// There is no such part.
    pub fn take(mut self, path: &InspectPath) -> Result<InspectNode, NoSuchPart> {
        for (depth, name) in path.parts().iter().enumerate() {
            match self.children.remove(name) {
                Some(child) => self = child,
                None => {
                    return Err(NoSuchPart {
                        name: name.clone(),
                        parent: InspectPath(path.parts()[..depth].to_vec()),
                        children: in_natural_order(self.children.keys().map(String::as_str))
                            .into_iter()
                            .map(ToOwned::to_owned)
                            .collect(),
                    });
                }
            }
        }
        Ok(self)
    }
}

/// A path that leads nowhere, and where it could have gone instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("There is no {name:?} in {}; {}", shown_parent(.parent), shown_children(.children))]
pub struct NoSuchPart {
    /// The first name of the path that does not exist.
    pub name: String,
    /// Where it does not exist.
    pub parent: InspectPath,
    /// What exists there.
    pub children: Vec<String>,
}

fn shown_parent(parent: &InspectPath) -> String {
    match parent.parts() {
        [] => "the tree".to_owned(),
        _ => format!("{:?}", parent.to_string()),
    }
}

fn shown_children(children: &[String]) -> String {
    if children.is_empty() {
        return "it has no parts".to_owned();
    }
    let named: Vec<String> = children
        .iter()
        .take(MAX_NAMES)
        .map(|name| escaped(name).escape_debug().to_string())
        .collect();
    let rest = match children.len().saturating_sub(MAX_NAMES) {
        0 => String::new(),
        left => format!(" and {left} more"),
    };
    format!("it has {}{rest}", named.join(", "))
}

/// Names with the numbers in them in the order of numbers: queue2 before queue10.
#[must_use]
pub fn in_natural_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_by_cached_key(|name| {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = name[stem.len()..].parse::<u64>();
        (
            stem.to_owned(),
            number.unwrap_or(u64::MAX),
            (*name).to_owned(),
        )
    });
    names
}

/// A path into the tree: names, as `virtio/_disk0/queue0`. A slash or a percent
/// sign within a name is written `%2F` or `%25`. The empty path is the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InspectPath(Vec<String>);

/// Why a text is no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Too long.
    #[error("invalid path: longer than {MAX_PATH} bytes")]
    Length,
    /// Two slashes, or one at an end.
    #[error("invalid path: an empty name before or after a slash")]
    EmptyName,
    /// A percent sign that begins no byte.
    #[error("invalid path: % is not followed by two hexadecimal digits")]
    Escape,
    /// The bytes are no text.
    #[error("invalid path: not UTF-8")]
    NotText,
}

impl InspectPath {
    /// The names.
    #[must_use]
    pub fn parts(&self) -> &[String] {
        &self.0
    }

    /// The path as the value of a parameter in a request.
    #[must_use]
    pub fn encode(&self) -> String {
        let parts: Vec<String> = self.0.iter().map(|part| encoded(part)).collect();
        parts.join("/")
    }
}

impl FromStr for InspectPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        if text.len() > MAX_PATH {
            return Err(PathError::Length);
        }
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split('/')
            .map(decoded)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for InspectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|part| escaped(part)).collect();
        f.write_str(&parts.join("/"))
    }
}

fn decoded(part: &str) -> Result<String, PathError> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || {
                    let digit = char::from(rest.next()?).to_digit(16)?;
                    u8::try_from(digit).ok()
                };
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(PathError::Escape);
                };
                high << 4 | low
            }
            byte => byte,
        };
        bytes.push(byte);
    }
    match String::from_utf8(bytes) {
        Ok(part) if part.is_empty() => Err(PathError::EmptyName),
        Ok(part) => Ok(part),
        Err(_) => Err(PathError::NotText),
    }
}

/// A name as it is written in a path.
fn escaped(part: &str) -> String {
    part.replace('%', "%25").replace('/', "%2F")
}

/// A name as it is written in a request, where other characters too have a meaning.
fn encoded(part: &str) -> String {
    part.bytes()
        .map(|byte| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' | b':' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Result<Vec<String>, PathError> {
        text.parse::<InspectPath>().map(|path| path.0)
    }

    #[test]
    fn a_path_is_its_names() {
        assert_eq!(parts("").unwrap(), [""; 0]);
        assert_eq!(parts("virtio/_disk0").unwrap(), ["virtio", "_disk0"]);
        assert_eq!(parts("a%2Fb/%25/%C3%A4").unwrap(), ["a/b", "%", "ä"]);
        // Names as any others, which no part has.
        assert_eq!(parts("../.").unwrap(), ["..", "."]);
        assert_eq!(parts("a+b").unwrap(), ["a+b"]);
        assert_eq!(parts("%00%0a").unwrap(), ["\0\n"]);
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for (text, error) in [
            ("/", PathError::EmptyName),
            ("/a", PathError::EmptyName),
            ("a/", PathError::EmptyName),
            ("a//b", PathError::EmptyName),
            ("%", PathError::Escape),
            ("%2", PathError::Escape),
            ("%2g", PathError::Escape),
            ("%+1", PathError::Escape),
            ("%ä0", PathError::Escape),
            ("%ff", PathError::NotText),
            ("%C3", PathError::NotText),
        ] {
            assert_eq!(parts(text), Err(error), "{text}");
        }
        assert!(parts(&"a".repeat(MAX_PATH)).is_ok());
        assert_eq!(parts(&"a".repeat(MAX_PATH + 1)), Err(PathError::Length));
    }

    #[test]
    fn a_part_that_does_not_exist_is_named_with_those_that_do() {
        let mut disk = InspectNode::default();
        for name in ["queue10", "queue2", "msix", "a/b\n"] {
            disk.children
                .insert(name.to_owned(), InspectNode::default());
        }
        let mut virtio = InspectNode::default();
        virtio.children.insert("_disk0".to_owned(), disk);
        let mut root = InspectNode::default();
        root.children.insert("virtio".to_owned(), virtio);
        let say = |path: &str| {
            root.clone()
                .take(&path.parse().unwrap())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            say("virtio/_disk0/queue1/x"),
            r#"There is no "queue1" in "virtio/_disk0"; it has a%2Fb\n, msix, queue2, queue10"#
        );
        assert_eq!(
            say("../etc"),
            r#"There is no ".." in the tree; it has virtio"#
        );
        assert_eq!(
            say("virtio/_disk0/msix/0"),
            r#"There is no "0" in "virtio/_disk0/msix"; it has no parts"#
        );
        let path: InspectPath = "virtio/_disk0/a%2Fb%0A".parse().unwrap();
        assert!(root.clone().take(&path).is_ok());
        assert_eq!(root.clone().take(&InspectPath::default()).unwrap(), root);
    }

    #[test]
    fn many_names_make_no_long_error() {
        let mut node = InspectNode::default();
        for number in 0..1000 {
            node.children
                .insert(format!("queue{number}"), InspectNode::default());
        }
        let error = node.take(&"x".parse().unwrap()).unwrap_err().to_string();
        assert!(error.ends_with("queue39 and 960 more"), "{error}");
    }

    #[test]
    fn values_are_plain_json() {
        let mut node = InspectNode::default();
        node.set("ready", true);
        node.set("size", 256);
        node.set("at", InspectValue::hex(0xfebf_0000));
        node.set("features", vec!["MQ".to_owned()]);
        node.count("read_ops", 3);
        let text = serde_json::to_string(&node).unwrap();
        assert_eq!(
            text,
            r#"{"values":{"at":"0xfebf0000","features":["MQ"],"ready":true,"size":256},"counters":{"read_ops":3}}"#
        );
        assert_eq!(serde_json::from_str::<InspectNode>(&text).unwrap(), node);
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_again(names in proptest::collection::vec("\\PC{1,20}", 0..4)) {
            let path = InspectPath(names);
            if path.encode().len() <= MAX_PATH {
                proptest::prop_assert_eq!(&path.encode().parse::<InspectPath>().unwrap(), &path);
                proptest::prop_assert_eq!(&path.to_string().parse::<InspectPath>().unwrap(), &path);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[%/a-fA-F0-9.\\PC]*") {
            let _ = text.parse::<InspectPath>();
        }
    }
}
