//! Finding a reason by what a person types.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::{ExitReason, ExitTable, ReasonEntry};

/// Why a text names no reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FindError {
    text: String,
    /// Reasons that it may mean, as `SYMBOL (number)`.
    candidates: Vec<String>,
    ambiguous: bool,
    isa: &'static str,
}

impl fmt::Display for FindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FindError { text, isa, .. } = self;
        let candidates = self.candidates.join(", ");
        let isa = isa.to_uppercase();
        match (self.ambiguous, self.candidates.is_empty()) {
            (true, _) => write!(f, "\"{text}\" is ambiguous: {candidates}"),
            (false, true) => write!(f, "{isa} has no exit reason named \"{text}\""),
            (false, false) => write!(
                f,
                "{isa} has no exit reason named \"{text}\"; similar: {candidates}"
            ),
        }
    }
}

impl core::error::Error for FindError {}

/// Candidates that an error names.
const MOST: usize = 8;
/// Characters that a similar name differs in at most.
const TYPOS: usize = 3;

impl ExitTable {
    /// Finds a reason as [`parse`](Self::parse) does, or by the beginning or a
    /// part of its symbol or name if only one reason has it.
    ///
    /// # Errors
    ///
    /// If several reasons have it, which are then named, or none has; then those
    /// with a similar symbol are.
    pub fn find(&self, text: &str) -> Result<ExitReason, FindError> {
        if let Some(reason) = self.parse(text) {
            return Ok(reason);
        }
        let wanted = normal(text);
        let matching = |test: &dyn Fn(&str) -> bool| -> Vec<&ReasonEntry> {
            self.reasons
                .iter()
                .filter(|entry| test(&normal(entry.symbol)) || test(&normal(entry.name)))
                .collect()
        };
        let mut found = Vec::new();
        if !wanted.is_empty() {
            found = matching(&|name| name.starts_with(&wanted));
            if found.is_empty() {
                found = matching(&|name| name.contains(&wanted));
            }
        }
        if let [entry] = found[..] {
            return Ok(ExitReason(entry.number));
        }
        let ambiguous = !found.is_empty();
        if !ambiguous {
            let mut near: Vec<_> = self
                .reasons
                .iter()
                .map(|entry| (distance(&normal(entry.symbol), &wanted), entry))
                .filter(|(distance, _)| *distance <= TYPOS.min(wanted.len() / 2))
                .collect();
            near.sort_by_key(|(distance, _)| *distance);
            found = near.into_iter().map(|(_, entry)| entry).collect();
        }
        let mut candidates: Vec<String> = found
            .iter()
            .take(MOST)
            .map(|entry| format!("{} ({})", entry.symbol, self.isa.number(entry.number)))
            .collect();
        if found.len() > MOST {
            candidates.push(format!("{} more", found.len() - MOST));
        }
        Err(FindError {
            text: text.to_string(),
            candidates,
            ambiguous,
            isa: self.isa.as_str(),
        })
    }
}

/// Small letters and digits only, so that "EPT violation" and `ept_violation`
/// are the same.
fn normal(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// Characters to insert, remove or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::*;

    #[test]
    fn a_beginning_or_a_part_that_only_one_reason_has_is_enough() {
        for (text, number) in [
            ("ept_viol", 48),
            ("triple", 2),
            ("Misconfig", 49),
            ("xsetbv", 55),
        ] {
            assert_eq!(
                Isa::Vmx.table().find(text),
                Ok(ExitReason(number)),
                "{text}"
            );
        }
        assert_eq!(Isa::Svm.table().find("0x72"), Ok(ExitReason(0x72)));
    }

    #[test]
    fn what_several_reasons_have_names_them() {
        let error = Isa::Vmx.table().find("EPT").unwrap_err().to_string();
        assert_eq!(
            error,
            "\"EPT\" is ambiguous: EPT_VIOLATION (48), EPT_MISCONFIG (49)"
        );
    }

    #[test]
    fn a_typing_error_names_what_is_similar() {
        let find = |text| Isa::Vmx.table().find(text).unwrap_err().to_string();
        assert_eq!(
            find("cpiud"),
            "VMX has no exit reason named \"cpiud\"; similar: CPUID (10)"
        );
        assert_eq!(
            find("no such reason"),
            "VMX has no exit reason named \"no such reason\""
        );
        for text in ["", "-", "é"] {
            assert!(Isa::Vmx.table().find(text).is_err(), "{text}");
        }
    }
}
