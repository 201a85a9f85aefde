//! The grammar below every flag: `key=value` pairs with commas between, where
//! quotes and square brackets protect commas, and single words where a flag
//! knows any.

use std::fmt::Display;
use std::str::FromStr;

use thiserror::Error;

use crate::config::unimplemented;

/// Elements that a list may have once its ranges are written out.
const MAX_LIST: u64 = 8192;

/// What is wrong with the text of a flag.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    /// The flag has no such option.
    #[error("unknown option \"{key}\"; valid: {known}")]
    UnknownKey {
        /// What was given.
        key: String,
        /// What could have been.
        known: String,
    },
    /// Neither a pair nor a word that the flag knows.
    #[error("\"{0}\" is not a key=value pair")]
    NotAPair(String),
    /// One option twice.
    #[error("option \"{0}\" is given twice")]
    Repeated(String),
    /// Quotes or brackets are left open, or closed too often.
    #[error("quotes or brackets do not match in \"{0}\"")]
    Unbalanced(String),
    /// The value does not fit.
    #[error("invalid value \"{value}\" for \"{key}\": expected {expected}")]
    Value {
        /// The option.
        key: String,
        /// What was given.
        value: String,
        /// What could have been.
        expected: String,
    },
    /// An option of Cloud Hypervisor's that asks for something that is not
    /// here.
    #[error("option \"{key}\" is not supported: {valid}")]
    Unsupported {
        /// The option.
        key: String,
        /// What of it is valid.
        valid: String,
    },
    /// An option that must be there is not.
    #[error("option \"{0}\" is missing")]
    Missing(String),
    /// Options that do not go together, or not without each other.
    #[error("{0}")]
    Combination(String),
}

/// Splits at `separator` where neither quotes nor brackets are open.
fn split_at(text: &str, separator: char) -> Result<Vec<&str>, OptionError> {
    let unbalanced = || OptionError::Unbalanced(text.to_owned());
    let mut parts = Vec::new();
    let (mut start, mut depth, mut quoted) = (0, 0usize, false);
    for (index, character) in text.char_indices() {
        match character {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1).ok_or_else(unbalanced)?,
            _ if character == separator && depth == 0 => {
                parts.push(&text[start..index]);
                start = index + character.len_utf8();
            }
            _ => {}
        }
    }
    if quoted || depth != 0 {
        return Err(unbalanced());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn unquote(text: &str) -> String {
    text.replace('"', "")
}

/// A map in the order in which it was written.
pub type Map<K, V> = Vec<(K, V)>;

/// The parsed text of one flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    pairs: Vec<(&'a str, &'a str)>,
    words: Vec<&'a str>,
}

impl<'a> Options<'a> {
    /// Parses a text that may use the options in `keys`, and the words in
    /// `words` without a value. An option given as `key=` counts as absent.
    pub fn parse(text: &'a str, keys: &[&str], words: &[&str]) -> Result<Self, OptionError> {
        Self::parse_for("", text, keys, words)
    }

    /// Parses a text like [`parse`](Self::parse), and accepts what Cloud
    /// Hypervisor's flag for the configuration type `of` takes besides, if it
    /// asks for nothing.
    pub(super) fn parse_for(
        of: &str,
        text: &'a str,
        keys: &[&str],
        words: &[&str],
    ) -> Result<Self, OptionError> {
        let mut options = Options {
            pairs: Vec::new(),
            words: Vec::new(),
        };
        for part in split_at(text.trim(), ',')? {
            let part = part.trim();
            match part.split_once('=') {
                _ if part.is_empty() => {}
                None if words.contains(&part) => options.words.push(part),
                // A key without its value, or no key at all?
                None if keys.contains(&part) => {
                    return Err(OptionError::NotAPair(part.to_owned()));
                }
                None => {
                    return Err(if words.is_empty() {
                        OptionError::NotAPair(part.to_owned())
                    } else {
                        unknown(part, keys, words)
                    });
                }
                Some((key, value)) => {
                    let Some(key) = known_key(of, key, value, keys, words)? else {
                        continue;
                    };
                    if options.pairs.iter().any(|(earlier, _)| *earlier == key) {
                        return Err(OptionError::Repeated(key.to_owned()));
                    }
                    options.pairs.push((key, value));
                }
            }
        }
        Ok(options)
    }

    /// The words that were given without a value.
    pub fn words(&self) -> &[&'a str] {
        &self.words
    }

    fn raw(&self, key: &str) -> Option<&'a str> {
        self.pairs
            .iter()
            .find(|(name, value)| *name == key && !value.is_empty())
            .map(|(_, value)| *value)
    }

    /// A text, without its quotes.
    pub fn text(&self, key: &str) -> Option<String> {
        self.raw(key).map(unquote)
    }

    /// Anything that is read from a text of its own.
    pub fn parsed<T: FromStr>(&self, key: &str, expected: &str) -> Result<Option<T>, OptionError> {
        self.read(key, expected, |text| text.parse().ok())
    }

    /// A number, decimal or hexadecimal after `0x`.
    pub fn number<T: TryFrom<u64>>(&self, key: &str) -> Result<Option<T>, OptionError> {
        self.read(key, &number_of::<T>(), number)
    }

    /// A signed number: a file descriptor.
    pub fn descriptor(&self, key: &str) -> Result<Option<i32>, OptionError> {
        self.read(key, "a file descriptor", number)
    }

    /// Bytes, with K, M or G for powers of 1024.
    pub fn size(&self, key: &str) -> Result<Option<u64>, OptionError> {
        self.read(key, SIZE_FORM, parse_size)
    }

    /// A switch; `None` if it was not given.
    pub fn toggle(&self, key: &str) -> Result<Option<bool>, OptionError> {
        self.read(key, "on, off, true or false", |text| {
            match text.to_ascii_lowercase().as_str() {
                "on" | "true" => Some(true),
                "off" | "false" => Some(false),
                _ => None,
            }
        })
    }

    /// One of several words, in any case.
    pub fn choice<T: Copy>(
        &self,
        key: &str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, OptionError> {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        self.read(key, &names.join(", "), |text| {
            choices
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(text))
                .map(|(_, choice)| *choice)
        })
    }

    /// A list of numbers and ranges, `[0,2-4]`; the brackets may be left out
    /// around a single element.
    pub fn numbers<T: TryFrom<u64>>(&self, key: &str) -> Result<Option<Vec<T>>, OptionError> {
        self.read_list(key, "a list of numbers such as [0,2-4]", numbers)
    }

    /// A list of file descriptors.
    pub fn descriptors(&self, key: &str) -> Result<Option<Vec<i32>>, OptionError> {
        self.read_list(key, "a list of file descriptors such as [3,4]", numbers)
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, OptionError> {
        self.read_list(key, "a list such as [a,b]", |elements| {
            Some(elements.iter().map(|element| unquote(element)).collect())
        })
    }

    /// A map from a number to a list of numbers, `[0@[1,2],1@3]`.
    pub fn number_lists<K: TryFrom<u64>, V: TryFrom<u64>>(
        &self,
        key: &str,
    ) -> Result<Option<Map<K, Vec<V>>>, OptionError> {
        self.read_list(key, "a map such as [0@[1,2],1@[3]]", |elements| {
            elements
                .iter()
                .map(|element| {
                    let (name, value) = element.split_once('@')?;
                    Some((number(name)?, numbers(&elements_of(value).ok()?)?))
                })
                .collect()
        })
    }

    /// A map from a name to a list of numbers, `[a@[1,2],b@3]`.
    pub fn named_lists<V: TryFrom<u64>>(
        &self,
        key: &str,
    ) -> Result<Option<Map<String, Vec<V>>>, OptionError> {
        self.read_list(key, "a map such as [a@[1,2],b@[3]]", |elements| {
            elements
                .iter()
                .map(|element| {
                    let (name, value) = element.split_once('@')?;
                    Some((name.to_owned(), numbers(&elements_of(value).ok()?)?))
                })
                .collect()
        })
    }

    /// A map from a number to a number, `[1@10,2@20]`.
    pub fn number_map<K: TryFrom<u64>, V: TryFrom<u64>>(
        &self,
        key: &str,
    ) -> Result<Option<Map<K, V>>, OptionError> {
        self.read_list(key, "a map such as [1@10,2@20]", |elements| {
            elements
                .iter()
                .map(|element| {
                    let (name, value) = element.split_once('@')?;
                    Some((number(name)?, number(value)?))
                })
                .collect()
        })
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        understand: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, OptionError> {
        self.raw(key)
            .map(|value| {
                understand(&unquote(value)).ok_or_else(|| bad_value(key, value, &expected))
            })
            .transpose()
    }

    fn read_list<T>(
        &self,
        key: &str,
        expected: &str,
        understand: impl FnOnce(&[&str]) -> Option<T>,
    ) -> Result<Option<T>, OptionError> {
        self.raw(key)
            .map(|value| {
                understand(&elements_of(value)?).ok_or_else(|| bad_value(key, value, &expected))
            })
            .transpose()
    }
}

/// The value of an option that must be there.
pub fn required<T>(key: &str, value: Option<T>) -> Result<T, OptionError> {
    value.ok_or_else(|| OptionError::Missing(key.to_owned()))
}

/// The key that the flag has for what was given; `None` if it asks for nothing.
fn known_key<'a>(
    of: &str,
    key: &'a str,
    value: &str,
    keys: &[&str],
    words: &[&str],
) -> Result<Option<&'a str>, OptionError> {
    if keys.contains(&key) {
        return Ok(Some(key));
    }
    if let Some(new) = unimplemented::renamed(of, key) {
        log::warn!("the option {key:?} is called {new} now");
        return Ok(Some(new));
    }
    match unimplemented::option(of, key, &unquote(value)) {
        None => Err(unknown(key, keys, words)),
        Some(Ok(())) => Ok(None),
        Some(Err(valid)) => Err(OptionError::Unsupported {
            key: key.to_owned(),
            valid,
        }),
    }
}

fn unknown(key: &str, keys: &[&str], words: &[&str]) -> OptionError {
    OptionError::UnknownKey {
        key: key.to_owned(),
        known: [words, keys].concat().join(", "),
    }
}

fn bad_value(key: &str, value: &str, expected: &impl Display) -> OptionError {
    OptionError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        expected: expected.to_string(),
    }
}

fn elements_of(value: &str) -> Result<Vec<&str>, OptionError> {
    let value = value.trim();
    let inner = value
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(value);
    if inner.trim().is_empty() {
        return Ok(Vec::new());
    }
    Ok(split_at(inner, ',')?.into_iter().map(str::trim).collect())
}

fn number<T: TryFrom<u64>>(text: &str) -> Option<T> {
    let text = text.trim();
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // The standard library would take a sign.
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    T::try_from(u64::from_str_radix(digits, radix).ok()?).ok()
}

fn numbers<T: TryFrom<u64>>(elements: &[&str]) -> Option<Vec<T>> {
    let mut list = Vec::new();
    for element in elements {
        let (first, last): (u64, u64) = match element.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(element)?, number(element)?),
        };
        if last < first || last - first >= MAX_LIST - list.len() as u64 {
            return None;
        }
        for value in first..=last {
            list.push(T::try_from(value).ok()?);
        }
    }
    Some(list)
}

fn number_of<T>() -> String {
    format!("a number of at most {} bits", 8 * size_of::<T>())
}

const SIZE_FORM: &str = "bytes, or a number with K, M or G after it";

/// Understands bytes as people write them: `512M`.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let shift = match text.chars().next_back()?.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        _ => 0,
    };
    let digits = if shift == 0 {
        text
    } else {
        &text[..text.len() - 1]
    };
    number::<u64>(digits)?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options<'_>, OptionError> {
        Options::parse(text, &["a", "b", "c"], &["tty"])
    }

    #[test]
    fn quotes_and_brackets_protect_commas() {
        let options = parse("a=\"x,y=[\",b=[1,\"2,3\"],tty").unwrap();
        assert_eq!(options.text("a").unwrap(), "x,y=[");
        assert_eq!(options.texts("b").unwrap().unwrap(), ["1", "2,3"]);
        assert_eq!(options.words(), ["tty"]);
    }

    #[test]
    fn a_value_may_contain_equals_signs() {
        assert_eq!(parse("a=b=c").unwrap().text("a").unwrap(), "b=c");
    }

    #[test]
    fn an_empty_value_counts_as_absent() {
        let options = parse("a=,b=1,").unwrap();
        assert_eq!(options.text("a"), None);
        assert_eq!(options.number::<u8>("a"), Ok(None));
    }

    #[test]
    fn what_the_flag_does_not_know_is_named() {
        let message = |text| parse(text).unwrap_err().to_string();
        assert_eq!(message("d=1"), "unknown option \"d\"; valid: tty, a, b, c");
        assert_eq!(message("a"), "\"a\" is not a key=value pair");
        assert_eq!(
            message("ttx"),
            "unknown option \"ttx\"; valid: tty, a, b, c"
        );
        assert_eq!(message("a=1,a=2"), "option \"a\" is given twice");
        for text in ["a=[1", "a=1]", "a=\"1", "a=]["] {
            assert_eq!(parse(text), Err(OptionError::Unbalanced(text.into())));
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("0x1000", 4096),
            ("1K", 1 << 10),
            ("512m", 512 << 20),
            ("4G", 4 << 30),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "K", "-1", "1.5G", "1T", "1KB", "17179869184G", "é"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn switches_are_on_off_true_or_false_in_any_case() {
        for (text, value) in [
            ("on", true),
            ("OFF", false),
            ("True", true),
            ("false", false),
        ] {
            let text = format!("a={text}");
            assert_eq!(parse(&text).unwrap().toggle("a"), Ok(Some(value)));
        }
        assert_eq!(
            parse("a=yes").unwrap().toggle("a").unwrap_err().to_string(),
            "invalid value \"yes\" for \"a\": expected on, off, true or false"
        );
    }

    #[test]
    fn lists_take_ranges_and_maps_take_lists() {
        let options = parse("a=[0,2-4],b=[0@[1,2],1@3],c=7").unwrap();
        assert_eq!(options.numbers::<u8>("a").unwrap().unwrap(), [0, 2, 3, 4]);
        assert_eq!(
            options.number_lists::<u32, usize>("b").unwrap().unwrap(),
            [(0, vec![1, 2]), (1, vec![3])]
        );
        assert_eq!(options.numbers::<u8>("c").unwrap().unwrap(), [7]);
        for text in ["a=[4-2]", "a=[300]", "a=[0-4294967295]", "a=[x]", "a=[1,]"] {
            assert!(parse(text).unwrap().numbers::<u8>("a").is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        for text in ["a=256", "a=-1", "a=+1", "a=0x", "a=1 2"] {
            assert!(parse(text).unwrap().number::<u8>("a").is_err(), "{text}");
        }
        assert_eq!(parse("a=0xff").unwrap().number::<u8>("a"), Ok(Some(255)));
    }
}
