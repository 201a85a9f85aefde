//! What it costs a vCPU's thread to record an exit that reached the VMM.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Equipment, Figures, Section, Verdict, number, words};
use crate::command::{command, output};
use crate::tree::Tree;

/// Nanoseconds on this machine, for the clock is a part of it.
pub(super) const SECTION: Section = Section {
    name: "record",
    wants: |_| false,
    equipment: Equipment::None,
    here: measure,
    judge,
};

/// What is measured, by the names of the functions in `vmm/benches/record.rs`.
const MEASURED: [(&str, &str); 4] = [
    ("access", "an access to a device"),
    ("accesses-everywhere", "accesses to 64 ranges in turn"),
    (
        "access-untimed",
        "an access, without reading the clock twice",
    ),
    ("other", "an exit of another kind"),
];

const LIMIT: f64 = 30.0;

fn measure(tree: &Tree, figures: &mut Figures) -> Result<()> {
    let args = ["bench", "--quiet", "-p", "vmm", "--bench", "record"];
    output(command("cargo", args).current_dir(tree.root()))?;
    for (name, _) in MEASURED {
        let path = tree
            .root()
            .join(format!("target/criterion/record/{name}/new/sample.json"));
        let text = fs::read(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        let times = times(&serde_json::from_slice(&text)?)
            .with_context(|| format!("{} has no samples", path.display()))?;
        figures.put_here(&least(name), times[0]);
        figures.put_here(name, times[times.len() / 2]);
    }
    Ok(())
}

/// The name of what the fastest sample took.
fn least(name: &str) -> String {
    format!("{name}-least")
}

/// What one record took in each of criterion's samples, ascending.
fn times(sample: &Value) -> Option<Vec<f64>> {
    let numbers = |name: &str| -> Option<Vec<f64>> {
        sample[name].as_array()?.iter().map(Value::as_f64).collect()
    };
    let (counts, times) = (numbers("iters")?, numbers("times")?);
    let mut each: Vec<f64> = times
        .iter()
        .zip(&counts)
        .map(|(time, count)| time / count)
        .collect();
    each.sort_by(f64::total_cmp);
    (!each.is_empty()).then_some(each)
}

fn judge(figures: &Figures, verdict: &mut Verdict) -> Result<()> {
    verdict.heading("Recording an exit in the VMM, on the machine at hand, in ns");
    let mut rows = vec![words(&["", "fastest sample", "median"])];
    for (name, what) in MEASURED {
        let (least, median) = (figures.get_here(&least(name))?, figures.get_here(name)?);
        rows.push(vec![what.to_owned(), number(least), number(median)]);
    }
    verdict.table(&rows);
    verdict.heading("Goals");
    for (name, what) in MEASURED {
        // Whatever else the machine does, it makes no sample faster.
        verdict.at_most(
            &format!("ns to record {what}, fastest sample"),
            figures.get_here(&least(name))?,
            LIMIT,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn time_of_one_is_that_of_a_sample_by_its_count() {
        let sample = json!({"iters": [1.0, 10.0, 4.0], "times": [30.0, 200.0, 100.0]});
        assert_eq!(times(&sample), Some(vec![20.0, 25.0, 30.0]));
        assert_eq!(times(&json!({"iters": [], "times": []})), None);
        assert_eq!(times(&json!({})), None);
    }
}
