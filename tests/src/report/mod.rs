//! The report that a demonstration leaves.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::artifact::kernel::Kernel;
use crate::host::Isa;
use crate::tree::Tree;

/// Start of a line that begins a section.
const SECTION: &str = "@section ";

/// Collects what a host prints and shows it with headings.
#[derive(Default)]
pub struct Report {
    text: String,
}

impl Report {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a line from the host; returns it as a person should see it.
    pub fn line(&mut self, line: &str) -> String {
        let shown = match line.strip_prefix(SECTION) {
            Some(title) => format!("\n== {title} ==\n"),
            None => line.to_owned(),
        };
        self.text.push_str(&shown);
        self.text.push('\n');
        shown
    }

    /// Writes the report and returns its path.
    pub fn write(&self, tree: &Tree, isa: Isa, kernel: &Kernel) -> Result<PathBuf> {
        let path = tree
            .lab()
            .join(format!("report-{}-{}.txt", isa.as_str(), kernel.release));
        let head = format!(
            "VM exits of a Linux guest\nhost: emulated {}, Linux {} ({}) with KVM counting exits\n",
            isa.as_str().to_uppercase(),
            kernel.release,
            kernel.version
        );
        fs::write(&path, format!("{head}{}", self.text))
            .with_context(|| format!("Cannot write {}", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_becomes_a_heading_and_other_lines_stay() {
        let mut report = Report::new();
        assert_eq!(report.line("@section One"), "\n== One ==\n");
        assert_eq!(report.line("text"), "text");
        assert_eq!(report.text, "\n== One ==\n\ntext\n");
    }
}
