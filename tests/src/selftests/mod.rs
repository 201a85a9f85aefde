//! The kernel's own tests of KVM, run on stock modules and on ours: whatever
//! passes there passes here.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::artifact::kernel::Series;
use crate::host::Isa;
use crate::tree::Tree;

mod page;
mod run;

use page::{Comparisons, render};
pub use run::Runner;

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Status 0.
    Pass,
    /// Status 4: something that it needs is not there.
    Skip,
    /// Any other status.
    Fail(i32),
    /// Ended by us.
    Late,
    /// The host said nothing any more.
    Hang,
    /// Not started, and why.
    Omitted(String),
}

impl Outcome {
    /// As a table shows it.
    pub fn as_str(&self) -> &str {
        match self {
            Outcome::Pass => "pass",
            Outcome::Skip => "skip",
            Outcome::Fail(_) => "fail",
            Outcome::Late => "late",
            Outcome::Hang => "hang",
            Outcome::Omitted(_) => "–",
        }
    }
}

/// What all programs did on one kind of host.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Comparison {
    /// The kernel's package version.
    pub version: String,
    /// On the distribution's modules.
    pub stock: BTreeMap<String, Outcome>,
    /// On ours, of those that pass there.
    pub ours: BTreeMap<String, Outcome>,
}

impl Comparison {
    /// What passes on stock modules and not on ours.
    pub fn lost(&self) -> Vec<&str> {
        self.passing()
            .filter(|name| self.ours.get(*name) != Some(&Outcome::Pass))
            .collect()
    }

    /// What passes on stock modules.
    pub fn passing(&self) -> impl Iterator<Item = &str> {
        self.stock
            .iter()
            .filter(|(_, outcome)| **outcome == Outcome::Pass)
            .map(|(name, _)| name.as_str())
    }

    /// Keeps it beside the page, which shows all kinds of hosts.
    pub fn save(&self, tree: &Tree, isa: Isa, series: Series) -> Result<()> {
        let path = path(tree, isa, series);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("Cannot make {}", folder.display()))?;
        }
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("Cannot write {}", path.display()))
    }
}

/// What the latest run on each kind of host found.
fn recorded(tree: &Tree) -> Result<Comparisons> {
    let mut found = Comparisons::new();
    for series in [Series::V6_1, Series::V6_12] {
        for isa in [Isa::Vmx, Isa::Svm] {
            let path = path(tree, isa, series);
            if path.exists() {
                let text =
                    fs::read(&path).with_context(|| format!("Cannot read {}", path.display()))?;
                let comparison = serde_json::from_slice(&text)
                    .with_context(|| format!("{} is damaged", path.display()))?;
                found.insert((series, isa.as_str()), comparison);
            }
        }
    }
    Ok(found)
}

fn path(tree: &Tree, isa: Isa, series: Series) -> PathBuf {
    tree.root().join(format!(
        "docs/kernel-selftests/{}-{}.json",
        isa.as_str(),
        series.as_str()
    ))
}

/// Writes the page from what is recorded, and returns its path.
pub fn write_page(tree: &Tree) -> Result<PathBuf> {
    let path = page_path(tree);
    fs::write(&path, render(&recorded(tree)?))
        .with_context(|| format!("Cannot write {}", path.display()))?;
    Ok(path)
}

fn page_path(tree: &Tree) -> PathBuf {
    tree.root().join("docs/kernel-selftests.md")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_page_is_what_its_records_make() {
        let tree = Tree::discover().unwrap();
        let page = fs::read_to_string(page_path(&tree)).unwrap();
        assert!(
            page == render(&recorded(&tree).unwrap()),
            "docs/kernel-selftests.md was edited: `cargo lab selftests` writes it"
        );
    }

    #[test]
    fn only_what_passes_on_stock_can_be_lost() {
        let outcomes = |list: &[(&str, Outcome)]| {
            list.iter()
                .map(|(name, outcome)| ((*name).to_owned(), outcome.clone()))
                .collect()
        };
        let comparison = Comparison {
            version: String::new(),
            stock: outcomes(&[
                ("kept", Outcome::Pass),
                ("lost", Outcome::Pass),
                ("never_ran", Outcome::Pass),
                ("fails_anyway", Outcome::Fail(254)),
            ]),
            ours: outcomes(&[
                ("kept", Outcome::Pass),
                ("lost", Outcome::Late),
                ("fails_anyway", Outcome::Fail(254)),
            ]),
        };
        assert_eq!(comparison.lost(), ["lost", "never_ran"]);
    }
}
