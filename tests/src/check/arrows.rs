//! Which module of the VMM may name which other: arrows point down, so that a
//! part can be understood by reading what is below it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::artifact::stamp::files_below;
use crate::tree::Tree;

/// Modules from the top down, each with all that it may name.
const MAY_NAME: &[(&str, &[&str])] = &[
    (
        "vm",
        &[
            "state",
            "inspect",
            "api",
            "config",
            "stats",
            "boot",
            "vcpu",
            "virtio",
            "devices",
            "pci",
            "interrupt",
            "bus",
            "memory",
            "monitor",
            "chardev",
            "sandbox",
            "sources",
            "event",
            "host_file",
        ],
    ),
    (
        "api",
        &[
            "inspect",
            "acceptor",
            "log_limit",
            "stats",
            "sandbox",
            "sources",
            "event",
            "host_file",
        ],
    ),
    (
        "config",
        &[
            "boot", "vcpu", "virtio", "devices", "pci", "memory", "chardev",
        ],
    ),
    ("stats", &[]),
    ("boot", &["devices", "memory", "host_file"]),
    ("vcpu", &["inspect", "bus", "memory", "sandbox", "event"]),
    (
        "virtio",
        &[
            "state",
            "inspect",
            "pci",
            "interrupt",
            "bus",
            "memory",
            "chardev",
            "acceptor",
            "log_limit",
            "sandbox",
            "sources",
            "event",
            "host_file",
        ],
    ),
    (
        "devices",
        &[
            "state",
            "pci",
            "interrupt",
            "bus",
            "memory",
            "chardev",
            "log_limit",
            "sandbox",
            "sources",
            "event",
        ],
    ),
    (
        "pci",
        &["inspect", "state", "interrupt", "bus", "memory", "event"],
    ),
    ("interrupt", &["memory"]),
    ("bus", &[]),
    ("memory", &["host_file"]),
    ("monitor", &["sandbox", "event"]),
    ("chardev", &["acceptor", "host_file"]),
    ("acceptor", &["log_limit"]),
    ("log_limit", &[]),
    ("sandbox", &["event"]),
    ("sources", &[]),
    ("state", &[]),
    ("inspect", &[]),
    ("event", &[]),
    ("host_file", &[]),
];

/// Every `crate::` path in the VMM's library goes along an arrow.
pub fn arrows_point_down(tree: &Tree) -> Result<()> {
    let source = tree.root().join("vmm/src");
    let mut wrong = Vec::new();
    for path in files_below(&source)? {
        let inside = path.strip_prefix(&source).unwrap_or(&path);
        let Some(module) = module_of(inside) else {
            continue;
        };
        let text =
            fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!(
                "{}: module {module} has no place in the order",
                inside.display()
            ));
            continue;
        };
        for named in named_modules(&text) {
            if named != module && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{}: {module} names {named}", inside.display()));
            }
        }
    }
    ensure!(
        wrong.is_empty(),
        "Arrows that point up:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

/// The top module that a file belongs to; the binary and the crate's root may
/// name everything, tests may too.
fn module_of(path: &Path) -> Option<String> {
    if path.extension().is_none_or(|suffix| suffix != "rs") || path.ends_with("tests.rs") {
        return None;
    }
    let first = path.iter().next()?.to_str()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(module, "lib" | "main" | "bin")).then(|| module.to_owned())
}

/// The top modules of this crate that a text names outside of its unit tests.
fn named_modules(text: &str) -> BTreeSet<String> {
    let code: String = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut names = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        if code[..at].ends_with('$') {
            continue;
        }
        let rest = &code[at + path.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(group_heads(group)),
            None => names.extend(identifier(rest)),
        }
    }
    // Items of the crate's root are no modules.
    names.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
    names
}

/// The first identifiers of a `{a::b, c::{d, e}}` group, its brace taken off.
fn group_heads(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut heads = Vec::new();
    let mut at_head = true;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_head = true,
            c if at_head && !c.is_whitespace() => {
                heads.extend(identifier(&group[at..]));
                at_head = false;
            }
            _ => {}
        }
    }
    heads
}

fn identifier(text: &str) -> Option<String> {
    let name: String = text
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_has_no_arrow_up() {
        for (place, (module, allowed)) in MAY_NAME.iter().enumerate() {
            for name in *allowed {
                let below = MAY_NAME.iter().position(|(module, _)| module == name);
                assert!(
                    below.is_some_and(|below| below > place),
                    "{module} names {name}"
                );
            }
        }
    }

    #[test]
    fn groups_and_inline_paths_are_found() {
        let text = "use crate::{bus::{A, B}, memory::C};\nfn f() { crate::vm::g() }\n\
                    // crate::api in a comment\n";
        let expected: BTreeSet<String> = ["bus", "memory", "vm"].map(String::from).into();
        assert_eq!(named_modules(text), expected);
    }

    #[test]
    fn unit_tests_may_name_everything() {
        let text = "use crate::bus::A;\n#[cfg(test)]\nmod tests {\n use crate::vm::B;\n}\n";
        assert_eq!(named_modules(text), ["bus".to_owned()].into());
    }
}
