//! The page that lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::{Comparison, Outcome};
use crate::artifact::kernel::Series;
use crate::host::Isa;

/// What is known of each kind of host.
pub type Comparisons = BTreeMap<(Series, &'static str), Comparison>;

/// Writes the page from all comparisons.
pub fn render(comparisons: &Comparisons) -> String {
    let mut page = String::from(
        "# The kernel's selftests\n\n\
         <!-- Written by `cargo lab selftests` from kernel-selftests/*.json; do not edit. -->\n\n\
         Linux's own tests of KVM, `tools/testing/selftests/kvm` in the distribution's source, run on\n\
         emulated hosts with the distribution's modules and with ours. What passes on stock modules is\n\
         run on ours, and must pass there. `cargo lab selftests` runs all of it again, `cargo lab test`\n\
         a few.\n",
    );
    let series: BTreeSet<Series> = comparisons.keys().map(|(series, _)| *series).collect();
    for series in series {
        let columns: Vec<(String, &Comparison)> = [Isa::Vmx, Isa::Svm]
            .into_iter()
            .filter_map(|isa| {
                let comparison = comparisons.get(&(series, isa.as_str()))?;
                Some((isa.as_str().to_uppercase(), comparison))
            })
            .collect();
        section(&mut page, series, &columns);
    }
    legend(&mut page, comparisons);
    page
}

// Writing to a String cannot fail, here and below.
fn section(page: &mut String, series: Series, columns: &[(String, &Comparison)]) {
    let _ = writeln!(page, "\n## Linux {}\n", series.as_str());
    for (column, comparison) in columns {
        let count = |outcomes: &BTreeMap<String, Outcome>, wanted: &str| {
            outcomes
                .values()
                .filter(|outcome| outcome.as_str() == wanted)
                .count()
        };
        let stock = |wanted| count(&comparison.stock, wanted);
        let _ = writeln!(
            page,
            "- {column} ({}): {} pass on stock modules, {} of them on ours; {} skip themselves, {} fail, \
             {} are ended as too late, {} hang the host, on stock modules.",
            comparison.version,
            stock("pass"),
            count(&comparison.ours, "pass"),
            stock("skip"),
            stock("fail"),
            stock("late"),
            stock("hang"),
        );
    }
    page.push_str("\n| program |");
    for (column, _) in columns {
        let _ = write!(page, " {column}, stock | {column}, ours |");
    }
    page.push_str("\n| --- |");
    for _ in columns {
        page.push_str(" --- | --- |");
    }
    page.push('\n');
    let names: BTreeSet<&String> = columns
        .iter()
        .flat_map(|(_, comparison)| comparison.stock.keys())
        .collect();
    for name in names {
        let _ = write!(page, "| `{name}` |");
        for (_, comparison) in columns {
            for outcomes in [&comparison.stock, &comparison.ours] {
                let shown = outcomes.get(name).map_or("–", Outcome::as_str);
                let _ = write!(page, " {shown} |");
            }
        }
        page.push('\n');
    }
}

fn legend(page: &mut String, comparisons: &Comparisons) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_shows_each_program_once_a_series_with_all_sides() {
        let outcomes = |list: &[(&str, Outcome)]| {
            list.iter()
                .map(|(name, outcome)| ((*name).to_owned(), outcome.clone()))
                .collect()
        };
        let svm = Comparison {
            version: "6.1.192-2".to_owned(),
            stock: outcomes(&[
                ("a", Outcome::Pass),
                ("b", Outcome::Skip),
                ("c", Outcome::Pass),
            ]),
            ours: outcomes(&[("a", Outcome::Pass), ("c", Outcome::Pass)]),
        };
        let vmx = Comparison {
            version: "6.1.192-2".to_owned(),
            stock: outcomes(&[
                ("a", Outcome::Pass),
                ("b", Outcome::Late),
                ("c", Outcome::Omitted("it hangs".to_owned())),
            ]),
            ours: outcomes(&[("a", Outcome::Fail(254))]),
        };
        let page = render(&Comparisons::from([
            ((Series::V6_1, "svm"), svm.clone()),
            ((Series::V6_1, "vmx"), vmx),
            ((Series::V6_12, "svm"), svm),
        ]));
        assert!(page.contains(
            "| `a` | pass | fail | pass | pass |\n\
             | `b` | late | – | skip | – |\n\
             | `c` | – | – | pass | pass |\n"
        ));
        assert!(page.contains("- VMX (6.1.192-2): 1 pass on stock modules, 0 of them on ours; 0"));
        assert!(page.contains("## Linux 6.12\n"));
        assert!(page.contains("| `b` | skip | – |\n"));
        assert!(page.contains("- `c`: it hangs.\n"));
    }
}
