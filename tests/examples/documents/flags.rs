//! Flags that the documents name exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};

// `cargo lab` itself, for its definition.
#[allow(dead_code, reason = "only the definition is wanted")]
#[path = "../../src/bin/lab.rs"]
mod lab_program;

/// All long flags of a command and its subcommands.
fn flags(command: &Command) -> BTreeSet<String> {
    let mut command = command.clone();
    command.build();
    let own = command.get_arguments().filter_map(|arg| arg.get_long());
    let mut all: BTreeSet<String> = own.map(|flag| format!("--{flag}")).collect();
    for subcommand in command.get_subcommands() {
        all.extend(flags(subcommand));
    }
    all
}

/// Commands in fenced code and in `code`, each on one line.
fn commands(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", " ").replace("cargo lab", "cargo-lab");
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if in_code {
            found.extend(line.split(['|', ';', '#']).map(str::to_owned));
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

#[test]
fn flags_that_the_documents_name_exist() {
    let programs = [
        ("cloud-hypervisor", flags(&crate::args::Args::command())),
        ("ch-remote", flags(&api_client::remote::definition())),
        ("exit-stats", flags(&crate::reader::definition())),
        ("cargo-lab", flags(&lab_program::Args::command())),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in pages {
        for command in commands(&fs::read_to_string(&page).unwrap()) {
            let mut words = command.split_whitespace();
            let named = words.find_map(|word| {
                let name = word.rsplit('/').next().unwrap_or(word);
                programs.iter().find(|(program, _)| *program == name)
            });
            let Some((program, known)) = named else {
                continue;
            };
            let given = words
                .flat_map(|word| word.split(['=', '[', ']']))
                .filter(|word| word.starts_with("--") && word.len() > 2);
            for flag in given {
                seen += 1;
                if !known.contains(flag) {
                    wrong.push(format!("{}: {program} {flag}", page.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "No such flags:\n{}", wrong.join("\n"));
    assert!(
        seen > 30,
        "Only {seen} flags found: are commands recognised?"
    );
}
