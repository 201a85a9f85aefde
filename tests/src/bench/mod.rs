//! Figures beside those of peers, and the goals that they are held to.
//!
//! A section is a module here, which knows the goals and the peers, and one of
//! the same name in the suites, which measures on a host and prints lines that
//! begin with [`FIGURE`].

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::host::Isa;
use crate::tree::Tree;

pub mod boot;
pub mod exits;
pub mod io;
pub mod load;
mod record;
mod verdict;

pub use verdict::Verdict;

/// Start of a line with a figure: name, then value.
pub const FIGURE: &str = "@figure ";

/// Where a host has the programs of peers, by name.
pub const PEERS: &str = "/peers";

/// A kind of host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Instruction set; SVM is the deterministic one.
    pub isa: Isa,
    /// Whose modules.
    pub patched: bool,
}

impl Place {
    /// Every kind.
    pub const ALL: [Place; 4] = [
        Place {
            isa: Isa::Svm,
            patched: false,
        },
        Place {
            isa: Isa::Svm,
            patched: true,
        },
        Place {
            isa: Isa::Vmx,
            patched: false,
        },
        Place {
            isa: Isa::Vmx,
            patched: true,
        },
    ];

    /// Whose modules, as it is written.
    pub fn modules(self) -> &'static str {
        if self.patched { "patched" } else { "stock" }
    }
}

/// What a section's host has besides the suites. Sections that need the same
/// share a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Equipment {
    /// Nothing.
    None,
    /// QEMU as another VMM, programs that measure disks and networks, and timers
    /// that tick.
    Measures,
}

/// What is measured together.
pub struct Section {
    /// As it is chosen on the command line.
    pub name: &'static str,
    /// Whether this kind of host has something to say.
    pub wants: fn(Place) -> bool,
    /// What it has to have.
    pub equipment: Equipment,
    /// What it measures on this machine, without a host.
    pub here: fn(&Tree, &mut Figures) -> Result<()>,
    /// Tables and goals of what was measured.
    pub judge: fn(&Figures, &mut Verdict) -> Result<()>,
}

/// All sections.
pub const SECTIONS: [Section; 6] = [
    exits::SECTION,
    boot::SECTION,
    load::SECTION,
    io::DISK,
    io::NET,
    record::SECTION,
];

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    hosts: BTreeMap<(&'static str, bool, String), f64>,
    here: BTreeMap<String, f64>,
}

impl Figures {
    /// Takes a line from a host; says whether it was a figure.
    pub fn line(&mut self, place: Place, line: &str) -> Result<bool> {
        let Some(rest) = line.strip_prefix(FIGURE) else {
            return Ok(false);
        };
        let (name, value) = rest
            .rsplit_once(' ')
            .with_context(|| format!("{line:?} has no value"))?;
        let value = value
            .parse()
            .with_context(|| format!("{line:?} has no number"))?;
        self.put(place, name, value);
        Ok(true)
    }

    /// Keeps a figure that was found elsewhere.
    pub fn put(&mut self, place: Place, name: &str, value: f64) {
        self.hosts
            .insert((place.isa.as_str(), place.patched, name.to_owned()), value);
    }

    /// A figure that must be there.
    pub fn get(&self, isa: Isa, patched: bool, name: &str) -> Result<f64> {
        self.hosts
            .get(&(isa.as_str(), patched, name.to_owned()))
            .copied()
            .with_context(|| format!("No {name} was measured on {}", isa.as_str()))
    }

    /// Figures whose name begins so: the rest of the name, and the value.
    pub fn beginning<'a>(
        &'a self,
        isa: Isa,
        patched: bool,
        begin: &'a str,
    ) -> impl Iterator<Item = (&'a str, f64)> {
        self.hosts
            .iter()
            .filter_map(move |((of, whose, name), value)| {
                (*of == isa.as_str() && *whose == patched)
                    .then(|| name.strip_prefix(begin))
                    .flatten()
                    .map(|rest| (rest, *value))
            })
    }

    /// Keeps a figure of this machine.
    pub fn put_here(&mut self, name: &str, value: f64) {
        self.here.insert(name.to_owned(), value);
    }

    /// A figure of this machine that must be there.
    pub fn get_here(&self, name: &str) -> Result<f64> {
        let figure = self.here.get(name).copied();
        figure.with_context(|| format!("No {name} was measured on this machine"))
    }

    /// The instruction sets that were measured.
    pub fn isas(&self) -> Vec<Isa> {
        [Isa::Svm, Isa::Vmx]
            .into_iter()
            .filter(|isa| self.hosts.keys().any(|(name, ..)| *name == isa.as_str()))
            .collect()
    }
}

/// For sections that measure on hosts alone.
fn nothing_here(_: &Tree, _: &mut Figures) -> Result<()> {
    Ok(())
}

/// A figure as people read it: whole numbers with separators.
pub fn number(value: f64) -> String {
    if value.fract() != 0.0 && value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 && digits != "0" {
        text.insert(0, '-');
    }
    text
}

fn words(row: &[&str]) -> Vec<String> {
    row.iter().map(|&cell| cell.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_lines_and_other_lines_are_left() {
        let mut figures = Figures::default();
        let place = Place {
            isa: Isa::Svm,
            patched: true,
        };
        assert!(
            figures
                .line(place, "@figure ticks of one exit 976")
                .unwrap()
        );
        assert!(!figures.line(place, "something else").unwrap());
        assert!(figures.line(place, "@figure nothing").is_err());
        assert_eq!(
            figures.get(Isa::Svm, true, "ticks of one exit").unwrap(),
            976.0
        );
        assert!(figures.get(Isa::Svm, false, "ticks of one exit").is_err());
    }

    #[test]
    fn numbers_have_separators() {
        assert_eq!(number(1234567.0), "1,234,567");
        assert_eq!(number(-1234.0), "-1,234");
        assert_eq!(number(1.5), "1.50");
        assert_eq!(number(0.0), "0");
    }
}
