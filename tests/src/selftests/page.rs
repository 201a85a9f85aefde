//! The page that lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::{Comparison, Outcome};

/// Writes the page from the comparisons by column name.
pub fn render(series: &str, comparisons: &BTreeMap<&str, Comparison>) -> String {
    let mut page = String::from(
        "# The kernel's selftests\n\n\
         <!-- Written by `cargo lab selftests`; do not edit. -->\n\n",
    );
    let versions: BTreeSet<&str> = comparisons
        .values()
        .map(|comparison| comparison.version.as_str())
        .collect();
    let versions: Vec<&str> = versions.into_iter().collect();
    let _ = write!(
        page,
        "`tools/testing/selftests/kvm` of Linux {series} ({}), run on emulated hosts with the\n\
         distribution's KVM modules and with ours. What passes on stock modules is run on ours, and\n\
         must pass there. `cargo lab selftests` runs all of it again; `cargo lab test` runs a few.\n\n",
        versions.join(", ")
    );
    for (column, comparison) in comparisons {
        let count = |outcomes: &BTreeMap<String, Outcome>, wanted: &str| {
            outcomes
                .values()
                .filter(|outcome| outcome.as_str() == wanted)
                .count()
        };
        let _ = writeln!(
            page,
            "- {column}: {} pass on stock modules, {} of them on ours; {} skip themselves, {} fail, \
             {} are ended as too late, {} hang the host, on stock modules.",
            count(&comparison.stock, "pass"),
            count(&comparison.ours, "pass"),
            count(&comparison.stock, "skip"),
            count(&comparison.stock, "fail"),
            count(&comparison.stock, "late"),
            count(&comparison.stock, "hang"),
        );
    }
    page.push_str("\n| program |");
    for column in comparisons.keys() {
        let _ = write!(page, " {column}, stock | {column}, ours |");
    }
    page.push_str("\n| --- |");
    for _ in comparisons {
        page.push_str(" --- | --- |");
    }
    page.push('\n');
    let names: BTreeSet<&String> = comparisons
        .values()
        .flat_map(|comparison| comparison.stock.keys())
        .collect();
    for name in names {
        let _ = write!(page, "| `{name}` |");
        for comparison in comparisons.values() {
            for outcomes in [&comparison.stock, &comparison.ours] {
                let shown = outcomes.get(name).map_or("–", Outcome::as_str);
                let _ = write!(page, " {shown} |");
            }
        }
        page.push('\n');
    }
    page.push_str(
        "\n*skip*: the program says itself that something it needs is not there. *late*: it takes longer\n\
         than the lab gives it under emulation. *–*: not started. On ours: because it does not pass on\n\
         stock modules. On stock modules:\n\n",
    );
    let omitted: BTreeMap<&str, &str> = comparisons
        .values()
        .flat_map(|comparison| &comparison.stock)
        .filter_map(|(name, outcome)| match outcome {
            Outcome::Omitted(why) => Some((name.as_str(), why.as_str())),
            _ => None,
        })
        .collect();
    for (name, why) in omitted {
        let _ = writeln!(page, "- `{name}`: {why}.");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_shows_each_program_once_with_both_sides() {
        let comparison = Comparison {
            version: "6.1.192-2".to_owned(),
            stock: BTreeMap::from([
                ("a".to_owned(), Outcome::Pass),
                ("b".to_owned(), Outcome::Skip),
                ("c".to_owned(), Outcome::Omitted("it hangs".to_owned())),
            ]),
            ours: BTreeMap::from([("a".to_owned(), Outcome::Pass)]),
        };
        let page = render("6.1", &BTreeMap::from([("SVM", comparison)]));
        assert!(page.contains("| `a` | pass | pass |\n| `b` | skip | – |\n"));
        assert!(page.contains("- SVM: 1 pass on stock modules, 1 of them on ours; 1 skip"));
        assert!(page.contains("- `c`: it hangs.\n"));
    }
}
